"""Report: figures, the neighbour explorer and one page that tells it all.

in     {D}/summary.csv, {D}/comparison.csv, {D}/sections.csv, metrics, losses and samples of every run
steps  figures, explorer, page
out    {D}/figures, {D}/neighbours.html, {D}/report.html
"""


rule figures:
    """Drawing the figures."""
    input:
        config=rules.record.output.config,
        metrics=expand(rules.train.output.metrics, run=RUNS),
        models=expand(rules.train.output.model, run=RUNS),
        summary=rules.summarise.output.summary,
        comparison=rules.summarise.output.comparison,
        sections=rules.summarise.output.sections,
    output:
        svg=report(
            [f"{D}/figures/{name}.svg" for name in FIGURES],
            caption="../docs/captions/figures.rst",
            category="Figures",
        ),
        png=[f"{D}/figures/{name}.png" for name in FIGURES],
    log:
        f"{D}/logs/figures.log",
    benchmark:
        f"{D}/benchmarks/figures.jsonl"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        code=code("retro.report.figures"),
        folder=lambda wildcards, output: os.path.dirname(output.svg[0]),
        benchmarks=f"{D}/benchmarks",  # how long each stage took: read for the cost figure, no trigger
    shell:
        "python -m retro.report.figures"
        " --config {input.config:q}"
        " --metrics {input.metrics:q}"
        " --models {input.models:q}"
        " --summary {input.summary:q}"
        " --comparison {input.comparison:q}"
        " --sections {input.sections:q}"
        " --benchmarks {params.benchmarks:q}"
        " --output-folder {params.folder:q}"
        " 2>&1 | tee {log:q}"


rule explorer:
    """Building the neighbour explorer."""
    input:
        config=rules.record.output.config,
        losses=lambda wildcards: explored(),
        templates=TEMPLATES,
    output:
        page=report(f"{D}/neighbours.html", caption="../docs/captions/explorer.rst", category="Pages"),
    log:
        f"{D}/logs/explorer.log",
    benchmark:
        f"{D}/benchmarks/explorer.jsonl"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        code=code("retro.report.explorer"),
    shell:
        "python -m retro.report.explorer"
        " --config {input.config:q}"
        " --losses {input.losses:q}"
        " --output {output.page:q}"
        " 2>&1 | tee {log:q}"


rule leakage:
    """Drawing what is left of the gain without overlapping text."""
    input:
        table=rules.filtered.output.table,
    output:
        svg=report(f"{D}/figures/leakage.svg", caption="../docs/captions/leakage.rst", category="Figures"),
        png=f"{D}/figures/leakage.png",
        part=f"{D}/parts/leakage.html",
    log:
        f"{D}/logs/leakage.log",
    benchmark:
        f"{D}/benchmarks/leakage.jsonl"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        code=code("retro.report.leakage"),
        folder=lambda wildcards, output: os.path.dirname(output.svg),
    shell:
        "python -m retro.report.leakage"
        " --table {input.table:q}"
        " --output-folder {params.folder:q}"
        " --part {output.part:q}"
        " 2>&1 | tee {log:q}"


rule page:
    """Writing the report."""
    input:
        config=rules.record.output.config,
        models=rules.figures.input.models,
        summary=rules.summarise.output.summary,
        comparison=rules.summarise.output.comparison,
        sections=rules.summarise.output.sections,
        figures=rules.figures.output.svg,
        samples=expand(rules.sample.output.sample, run=RETRO_RUNS[:1]),
        explorer=rules.explorer.output.page,
        parts=parts(),
        templates=TEMPLATES,
    output:
        page=report(f"{D}/report.html", caption="../docs/captions/report.rst", category="Pages"),
    log:
        f"{D}/logs/page.log",
    benchmark:
        f"{D}/benchmarks/page.jsonl"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        code=code("retro.report.page"),
    shell:
        "python -m retro.report.page"
        " --config {input.config:q}"
        " --models {input.models:q}"
        " --summary {input.summary:q}"
        " --comparison {input.comparison:q}"
        " --sections {input.sections:q}"
        " --figures {input.figures:q}"
        " --samples {input.samples:q}"
        " --explorer {input.explorer:q}"
        " --parts {input.parts:q}"
        " --output {output.page:q}"
        " 2>&1 | tee {log:q}"
