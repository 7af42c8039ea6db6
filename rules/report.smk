"""Report: figures, the neighbour explorer and one page that tells it all.

in     {D}/summary.csv, {D}/comparison.csv, {D}/sections.csv, metrics, losses and samples of every run
steps  figures, explorer, page
out    {D}/figures, {D}/neighbours.html, {D}/report.html
"""


rule figures:
    """Drawing the figures."""
    input:
        config=RECORDED,
        metrics=expand(rules.train.output.metrics, run=RUNS),
        models=expand(rules.train.output.model, run=RUNS),
        summary=rules.summarise.output.summary,
        comparison=rules.summarise.output.comparison,
        sections=rules.summarise.output.sections,
    output:
        svg=report(
            [f"{D}/{names.FIGURES}/{name}.svg" for name in DRAWN],
            caption="../docs/captions/figures.rst",
            category="Figures",
        ),
        png=[f"{D}/{names.FIGURES}/{name}.png" for name in DRAWN],
        csv=[f"{D}/{names.FIGURES}/{name}.csv" for name in TABLED],
    log:
        f"{D}/logs/figures.log",
    benchmark:
        f"{D}/benchmarks/figures.jsonl"
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
        config=RECORDED,
        losses=lambda wildcards: WORKFLOW.explored(),
        templates=elsewhere(TEMPLATES),
    output:
        page=report(f"{D}/neighbours.html", caption="../docs/captions/explorer.rst", category="Pages"),
    log:
        f"{D}/logs/explorer.log",
    benchmark:
        f"{D}/benchmarks/explorer.jsonl"
    params:
        code=code("retro.report.explorer"),
        content=lambda wildcards: content(TEMPLATES),
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
        svg=report(f"{D}/{names.FIGURES}/leakage.svg", caption="../docs/captions/leakage.rst", category="Figures"),
        png=f"{D}/{names.FIGURES}/leakage.png",
        part=f"{D}/{names.PARTS}/leakage.html",
    log:
        f"{D}/logs/leakage.log",
    benchmark:
        f"{D}/benchmarks/leakage.jsonl"
    params:
        code=code("retro.report.leakage"),
        folder=lambda wildcards, output: os.path.dirname(output.svg),
    shell:
        "python -m retro.report.leakage"
        " --table {input.table:q}"
        " --output-folder {params.folder:q}"
        " --part {output.part:q}"
        " 2>&1 | tee {log:q}"


rule copying:
    """Comparing RETRO with a GPT that copies from the same neighbours."""
    input:
        config=RECORDED,
        losses=lambda wildcards: WORKFLOW.copiers(),
        overlap=expand(rules.overlap.output.manifest, split="test"),
    output:
        table=report(f"{D}/copying.csv", caption="../docs/captions/copying.rst", category="Tables"),
        svg=report(f"{D}/{names.FIGURES}/copying.svg", caption="../docs/captions/copying.rst", category="Figures"),
        png=f"{D}/{names.FIGURES}/copying.png",
        part=f"{D}/{names.PARTS}/copying.html",
    log:
        f"{D}/logs/copying.log",
    benchmark:
        f"{D}/benchmarks/copying.jsonl"
    params:
        code=code("retro.report.copying"),
        settings=section(bootstrap=CONFIG.evaluate.bootstrap, bootstrap_unit=CONFIG.evaluate.bootstrap_unit),
        runs=rules.summarise.params.runs,
        folder=lambda wildcards, output: os.path.dirname(output.svg),
    shell:
        "python -m retro.report.copying"
        " --config {input.config:q}"
        " --losses {input.losses:q}"
        " --overlap {input.overlap:q}"
        " --runs {params.runs:q}"
        " --settings {params.settings:q}"
        " --table {output.table:q}"
        " --output-folder {params.folder:q}"
        " --part {output.part:q}"
        " 2>&1 | tee {log:q}"


rule page:
    """Writing the report."""
    input:
        config=RECORDED,
        models=rules.figures.input.models,
        summary=rules.summarise.output.summary,
        comparison=rules.summarise.output.comparison,
        sections=rules.summarise.output.sections,
        copying=rules.copying.output.table if WORKFLOW.copies else [],
        figures=rules.figures.output.svg,
        samples=expand(rules.sample.output.sample, run=WORKFLOW.retro_runs[:1]),
        explorer=rules.explorer.output.page,
        parts=WORKFLOW.parts(),
        templates=elsewhere(TEMPLATES),
    output:
        page=report(f"{D}/report.html", caption="../docs/captions/report.rst", category="Pages"),
    log:
        f"{D}/logs/page.log",
    benchmark:
        f"{D}/benchmarks/page.jsonl"
    params:
        code=code("retro.report.report_page"),
        content=lambda wildcards: content(TEMPLATES),
        benchmarks=f"{D}/benchmarks",  # this and the next are read for Provenance, no triggers
        started=f"{D}/{started.NAME}",
    shell:
        "python -m retro.report.report_page"
        " --config {input.config:q}"
        " --models {input.models:q}"
        " --summary {input.summary:q}"
        " --comparison {input.comparison:q}"
        " --sections {input.sections:q}"
        " --copying {input.copying:q}"
        " --figures {input.figures:q}"
        " --samples {input.samples:q}"
        " --explorer {input.explorer:q}"
        " --parts {input.parts:q}"
        " --benchmarks {params.benchmarks:q}"
        " --started {params.started:q}"
        " --output {output.page:q}"
        " 2>&1 | tee {log:q}"


if WORKFLOW.dense:

    rule indexes:
        """What the indexes of the config's retrievals find, and at what cost; the next `snakemake` puts it in the report."""
        input:
            config=RECORDED,
            neighbours=[WORKFLOW.neighbours(name, WORKFLOW.splits[0]) for name in WORKFLOW.dense],
            indexes=[RETRIEVALS.searched(name)[0] for name in WORKFLOW.dense],
            arrays=arrays(*[RETRIEVALS.searched_files(name) for name in WORKFLOW.dense]),
        output:
            csv=f"{D}/{names.FIGURES}/indexes.csv",
            svg=report(f"{D}/{names.FIGURES}/indexes.svg", caption="../docs/captions/indexes.rst", category="Figures"),
            png=f"{D}/{names.FIGURES}/indexes.png",
            part=f"{D}/{names.PARTS}/indexes.html",
        log:
            f"{D}/logs/indexes.log",
        benchmark:
            f"{D}/benchmarks/indexes.jsonl"
        resources:
            mem_mb=8000,
        params:
            code=code("retro.report.indexes"),
            names=WORKFLOW.dense,
            left_out=WORKFLOW.embedded_otherwise,
            split=WORKFLOW.splits[0],
            folder=lambda wildcards, output: os.path.dirname(output.svg),
        shell:
            "python -m retro.report.indexes"
            " --config {input.config:q}"
            " --names {params.names:q}"
            " --left-out {params.left_out:q}"
            " --neighbours {input.neighbours:q}"
            " --indexes {input.indexes:q}"
            " --split {params.split}"
            " --output-folder {params.folder:q}"
            " --part {output.part:q}"
            " 2>&1 | tee {log:q}"

else:  # a section that another config made is a file like any other

    rule indexes:
        """Nothing to draw."""
        input:
            lambda wildcards: WORKFLOW.drawn(),
