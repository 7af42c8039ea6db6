"""Experiments: questions to trained models, each a table and a figure. The config's `experiments` says which.

in     models, {D}/neighbours, {D}/retrievals
steps  many candidates once, smaller databases from them; losses; a kNN-LM; comparison, table and figure of each; the section
out    {D}/experiments/<experiment>.csv, .svg, .png, {D}/parts/experiments.html
"""


wildcard_constraints:
    experiment="|".join(CATALOGUE),
    fraction=r"database-[0-9.e-]+-s\d+",  # retro.evaluation.conditions.FRACTION


use rule neighbours as candidates with:
    """Finding many {wildcards.retrieval}candidates for each {wildcards.split} chunk, once for all sizes of the database."""
    input:
        **{name: files for name, files in rules.neighbours.input.items() if name != "shards"},
    output:
        ids=f"{D}/{names.CANDIDATES}/ids.npy",
        scores=f"{D}/{names.CANDIDATES}/scores.npy",
        manifest=f"{D}/{names.CANDIDATES}/manifest.json",
    log:
        f"{D}/logs/{{retrieval}}candidates/{{split}}.log",
    benchmark:
        f"{D}/benchmarks/{{retrieval}}candidates/{{split}}.jsonl"
    wildcard_constraints:
        retrieval="|".join(["()", *OTHERS]),
    params:
        settings=lambda wildcards: section(
            **RETRIEVALS.searching(named(wildcards), wildcards.split, saved=EXPERIMENTS.candidates, recall_sample=0),
            seed=DATASET.seed,
        ),
        part=lambda wildcards, output: ["--output", output.manifest],


rule subsample:
    """Keeping a share of the database: {wildcards.fraction}."""
    input:
        candidates=rules.candidates.output.manifest,
        arrays=arrays(rules.candidates.output.ids, rules.candidates.output.scores),
    output:
        ids=f"{D}/{names.SUBSAMPLED}/ids.npy",
        scores=f"{D}/{names.SUBSAMPLED}/scores.npy",
        manifest=f"{D}/{names.SUBSAMPLED}/manifest.json",
    log:
        f"{D}/logs/{{retrieval}}subsample/{{fraction}}.{{split}}.log",
    benchmark:
        f"{D}/benchmarks/{{retrieval}}subsample/{{fraction}}.{{split}}.jsonl"
    wildcard_constraints:
        retrieval="|".join(["()", *OTHERS]),
    params:
        code=code("retro.retrieval.subsample"),
        settings=lambda wildcards: section(**WORKFLOW.kept(wildcards.fraction)),
    shell:
        "python -m retro.retrieval.subsample"
        " --settings {params.settings:q}"
        " --candidates {input.candidates:q}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"


rule knn:
    """Mixing {wildcards.run} on {wildcards.split} with what followed like states: {wildcards.knn}."""
    input:
        config=RECORDED,
        model=rules.train.output.model,
        weights=arrays(rules.train.output.weights),
        losses=lambda wildcards: WORKFLOW.beside_copier(wildcards.run, wildcards.split, wildcards.knn),
        fitted=lambda wildcards: WORKFLOW.beside_copier(wildcards.run, "valid", wildcards.knn),
    output:
        losses=f"{D}/{names.KNN}/losses.npy",
        manifest=f"{D}/{names.KNN}/manifest.json",
    log:
        f"{D}/logs/knn/{{run}}.{{split}}.{{knn}}.log",
    benchmark:
        f"{D}/benchmarks/knn/{{run}}.{{split}}.{{knn}}.jsonl"
    threads: RESOURCES.search_threads
    resources:
        mem_mb=8000,
        runtime="24h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.evaluation.knn_lm"),
    shell:
        "python -m retro.evaluation.knn_lm"
        " --config {input.config:q}"
        " --model {input.model:q}"
        " --losses {input.losses:q}"
        " --fitted {input.fitted:q}"
        " --mode {wildcards.knn}"
        " --memory {resources.mem_mb}"
        " --threads {threads}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"


use rule summarise as experiment_comparison with:
    """Comparing the conditions of experiment {wildcards.experiment}."""
    input:
        config=RECORDED,
        losses=lambda wildcards: WORKFLOW.compared(wildcards.experiment),
    output:
        summary=f"{D}/{names.EXPERIMENT}/summary.csv",
        comparison=f"{D}/{names.EXPERIMENT}/comparison.csv",
    log:
        f"{D}/logs/experiments/{{experiment}}.comparison.log",
    benchmark:
        f"{D}/benchmarks/experiments/{{experiment}}.comparison.jsonl"
    params:
        more=[],


rule experiment:
    """Drawing experiment {wildcards.experiment}."""
    input:
        config=RECORDED,
        comparison=rules.experiment_comparison.output.comparison,
        models=rules.figures.input.models,
        metrics=rules.figures.input.metrics,
        neighbours=lambda wildcards: WORKFLOW.described(wildcards.experiment),
    output:
        table=report(f"{D}/{names.EXPERIMENT}.csv", caption="../docs/captions/experiments.rst", category="Experiments"),
        svg=report(f"{D}/{names.EXPERIMENT}.svg", caption="../docs/captions/experiments.rst", category="Experiments"),
        png=f"{D}/{names.EXPERIMENT}.png",
    log:
        f"{D}/logs/experiments/{{experiment}}.log",
    benchmark:
        f"{D}/benchmarks/experiments/{{experiment}}.jsonl"
    params:
        code=code("retro.experiments.draw"),
        shown=[] if CONFIG.evaluate.neighbours_used is None else [CONFIG.evaluate.neighbours_used],
    shell:
        "python -m retro.experiments.draw"
        " --name {wildcards.experiment}"
        " --config {input.config:q}"
        " --comparison {input.comparison:q}"
        " --models {input.models:q}"
        " --metrics {input.metrics:q}"
        " --neighbours {input.neighbours:q}"
        " --shown {params.shown:q}"
        " --output {output.table:q}"
        " 2>&1 | tee {log:q}"


rule experiments_part:
    """Writing the report's section on experiments."""
    input:
        tables=expand(rules.experiment.output.table, experiment=EXPERIMENTS.names),
        svg=expand(rules.experiment.output.svg, experiment=EXPERIMENTS.names),
    output:
        part=f"{D}/{names.PARTS}/experiments.html",
    log:
        f"{D}/logs/experiments.log",
    benchmark:
        f"{D}/benchmarks/experiments.jsonl"
    params:
        code=code("retro.experiments.section"),
    shell:
        "python -m retro.experiments.section"
        " --tables {input.tables:q}"
        " --output {output.part:q}"
        " 2>&1 | tee {log:q}"


rule experiments:
    """The experiments that the config names, and Leakage; the next `snakemake` puts them in the report."""
    input:
        rules.experiments_part.output,
        rules.leakage.output,
