"""Experiments: questions to trained models, each a table and a figure. The config's `experiments` says which.

in     models, {D}/neighbours, {D}/retrievals
steps  many candidates once, smaller databases from them; losses; comparison, table and figure of each; the section
out    {D}/experiments/<experiment>.csv, .svg, .png, {D}/parts/experiments.html
"""


wildcard_constraints:
    experiment="|".join(CATALOGUE),
    share=r"[0-9.e-]+",
    draw=r"\d+",


rule candidates:
    """Finding many candidates for each {wildcards.split} chunk, once for all sizes of the database."""
    input:
        **{name: files for name, files in rules.neighbours.input.items() if name != "shards"},
    output:
        ids=f"{D}/candidates/{{split}}/ids.npy",
        scores=f"{D}/candidates/{{split}}/scores.npy",
        manifest=f"{D}/candidates/{{split}}/manifest.json",
    log:
        f"{D}/logs/candidates/{{split}}.log",
    benchmark:
        f"{D}/benchmarks/candidates/{{split}}.jsonl"
    threads: RESOURCES.search_threads
    resources:
        mem_mb=16000,
        runtime="24h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.retrieval.neighbours"),
        settings=section(
            neighbours={**WHOLE["neighbours"], "saved": EXPERIMENTS.candidates, "recall_sample": 0},
            index=WHOLE["index"],
            seed=DATASET.seed,
        ),
    shell:
        "python -m retro.retrieval.neighbours"
        " --settings {params.settings:q}"
        " --split {wildcards.split}"
        " --database {input.database:q}"
        " --chunks {input.chunks:q}"
        " --embeddings {input.embeddings:q}"
        " --index {input.index:q}"
        " --duplicates {input.duplicates:q}"
        " --output {output.manifest:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule subsample:
    """Keeping {wildcards.share} of the database, draw {wildcards.draw}."""
    input:
        candidates=rules.candidates.output.manifest,
        arrays=arrays(rules.candidates.output.ids, rules.candidates.output.scores),
    output:
        ids=f"{D}/fractions/database-{{share}}-s{{draw}}/{{split}}/ids.npy",
        scores=f"{D}/fractions/database-{{share}}-s{{draw}}/{{split}}/scores.npy",
        manifest=f"{D}/fractions/database-{{share}}-s{{draw}}/{{split}}/manifest.json",
    log:
        f"{D}/logs/subsample/{{share}}.{{draw}}.{{split}}.log",
    benchmark:
        f"{D}/benchmarks/subsample/{{share}}.{{draw}}.{{split}}.jsonl"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        code=code("retro.retrieval.subsample"),
        settings=lambda wildcards: section(
            share=float(wildcards.share),
            seed=int(wildcards.draw),
            saved=min(DATASET.neighbours.saved, EXPERIMENTS.candidates),
        ),
    shell:
        "python -m retro.retrieval.subsample"
        " --settings {params.settings:q}"
        " --candidates {input.candidates:q}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"


rule experiment_comparison:
    """Comparing the conditions of experiment {wildcards.experiment}."""
    input:
        config=rules.record.output.config,
        losses=lambda wildcards: compared(wildcards.experiment),
    output:
        summary=f"{D}/experiments/{{experiment}}/summary.csv",
        comparison=f"{D}/experiments/{{experiment}}/comparison.csv",
    log:
        f"{D}/logs/experiments/{{experiment}}.comparison.log",
    benchmark:
        f"{D}/benchmarks/experiments/{{experiment}}.comparison.jsonl"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        code=code("retro.evaluation.summarise"),
        settings=rules.summarise.params.settings,
        runs=TWINS,
    shell:
        "python -m retro.evaluation.summarise"
        " --config {input.config:q}"
        " --losses {input.losses:q}"
        " --runs {params.runs:q}"
        " --settings {params.settings:q}"
        " --summary {output.summary:q}"
        " --comparison {output.comparison:q}"
        " 2>&1 | tee {log:q}"


rule experiment:
    """Drawing experiment {wildcards.experiment}."""
    input:
        config=rules.record.output.config,
        comparison=rules.experiment_comparison.output.comparison,
        models=rules.figures.input.models,
        metrics=rules.figures.input.metrics,
        neighbours=lambda wildcards: (
            [
                f"{D}/{folder}neighbours/{CONFIG.evaluate.splits[0]}/manifest.json"
                for folder in ["", *(f"retrievals/{name}/" for name in RETRIEVAL_NAMES)]
            ]
            if CATALOGUE[wildcards.experiment].recall
            else []
        ),
    output:
        table=report(
            f"{D}/experiments/{{experiment}}.csv", caption="../docs/captions/experiments.rst", category="Experiments"
        ),
        svg=report(
            f"{D}/experiments/{{experiment}}.svg", caption="../docs/captions/experiments.rst", category="Experiments"
        ),
        png=f"{D}/experiments/{{experiment}}.png",
    log:
        f"{D}/logs/experiments/{{experiment}}.log",
    benchmark:
        f"{D}/benchmarks/experiments/{{experiment}}.jsonl"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        code=code("retro.experiments.draw"),
    shell:
        "python -m retro.experiments.draw"
        " --name {wildcards.experiment}"
        " --config {input.config:q}"
        " --comparison {input.comparison:q}"
        " --models {input.models:q}"
        " --metrics {input.metrics:q}"
        " --neighbours {input.neighbours:q}"
        " --output {output.table:q}"
        " 2>&1 | tee {log:q}"


rule experiments_part:
    """Writing the report's section on experiments."""
    input:
        tables=expand(rules.experiment.output.table, experiment=EXPERIMENTS.names),
        svg=expand(rules.experiment.output.svg, experiment=EXPERIMENTS.names),
    output:
        part=f"{D}/parts/experiments.html",
    log:
        f"{D}/logs/experiments.log",
    benchmark:
        f"{D}/benchmarks/experiments.jsonl"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        code=code("retro.experiments.part"),
    shell:
        "python -m retro.experiments.part"
        " --tables {input.tables:q}"
        " --output {output.part:q}"
        " 2>&1 | tee {log:q}"


rule experiments:
    """The experiments that the config names, and Leakage; the next `snakemake` puts them in the report."""
    input:
        rules.experiments_part.output,
        rules.leakage.output,
