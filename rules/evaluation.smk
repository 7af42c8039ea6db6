"""Evaluation: models to per-token losses, bits per byte, comparisons and samples.

in     {D}/config.json, {D}/runs/<run>
steps  losses for each run, split and condition, mixed with a copier; summarise; overlap and what is left without it; sample
out    {D}/runs/<run>/evaluation, {D}/summary.csv, {D}/comparison.csv, {D}/sections.csv, {D}/leakage.csv, {D}/runs/<run>/sample.json
"""


rule losses:
    """Measuring {wildcards.run} on {wildcards.split}, retrieval {wildcards.mode}."""
    input:
        config=lambda wildcards: WORKFLOW.recorded(wildcards.run, wildcards.mode),
        model=rules.train.output.model,
        weights=arrays(rules.train.output.weights),
        neighbours=lambda wildcards: WORKFLOW.shown(wildcards.mode, wildcards.split),
    output:
        losses=f"{D}/{names.LOSSES}/losses.npy",
        manifest=f"{D}/{names.LOSSES}/manifest.json",
    log:
        f"{D}/logs/losses/{{run}}.{{split}}.{{mode}}.log",
    benchmark:
        f"{D}/benchmarks/losses/{{run}}.{{split}}.{{mode}}.jsonl"
    priority: lambda wildcards: WORKFLOW.priority(wildcards.mode)
    threads: RESOURCES.evaluate_threads
    resources:
        mem_mb=8000,
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.evaluation.losses"),
        settings=lambda wildcards: canonical(WORKFLOW.measuring(wildcards.mode)),
    shell:
        "python -m retro.evaluation.losses"
        " --config {input.config:q}"
        " --model {input.model:q}"
        " --settings {params.settings:q}"
        " --split {wildcards.split}"
        " --mode {wildcards.mode}"
        " --neighbours {input.neighbours:q}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"


rule mixed:
    """Mixing {wildcards.run} on {wildcards.split} with a copier: {wildcards.mixed}."""
    input:
        config=RECORDED,
        losses=lambda wildcards: WORKFLOW.beside_copier(**wildcards),
        fitted=lambda wildcards: WORKFLOW.beside_copier(wildcards.run, "valid", wildcards.mixed),
        neighbours=lambda wildcards: WORKFLOW.shown(wildcards.mixed, wildcards.split, "valid"),
    output:
        losses=f"{D}/{names.MIXED}/losses.npy",
        lengths=f"{D}/{names.MIXED}/lengths.npy",
        manifest=f"{D}/{names.MIXED}/manifest.json",
    log:
        f"{D}/logs/mixed/{{run}}.{{split}}.{{mixed}}.log",
    benchmark:
        f"{D}/benchmarks/mixed/{{run}}.{{split}}.{{mixed}}.jsonl"
    params:
        code=code("retro.evaluation.copying"),
    shell:
        "python -m retro.evaluation.copying"
        " --config {input.config:q}"
        " --losses {input.losses:q}"
        " --fitted {input.fitted:q}"
        " --mode {wildcards.mixed}"
        " --neighbours {input.neighbours:q}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"


rule summarise:
    """Comparing every RETRO run with its GPT twin."""
    input:
        config=RECORDED,
        losses=WORKFLOW.losses(),
    output:
        summary=report(f"{D}/summary.csv", caption="../docs/captions/summary.rst", category="Tables"),
        comparison=report(f"{D}/comparison.csv", caption="../docs/captions/comparison.rst", category="Tables"),
        sections=report(f"{D}/sections.csv", caption="../docs/captions/sections.rst", category="Tables"),
        documents=f"{D}/documents.csv",
    log:
        f"{D}/logs/summarise.log",
    benchmark:
        f"{D}/benchmarks/summarise.jsonl"
    params:
        code=code("retro.evaluation.summarise"),
        settings=canonical(CONFIG.evaluate.compared_facts()),
        runs=json.dumps(WORKFLOW.twins()),
        more=lambda wildcards, output: ["--sections", output.sections, "--documents", output.documents],
    shell:
        "python -m retro.evaluation.summarise"
        " --config {input.config:q}"
        " --losses {input.losses:q}"
        " --runs {params.runs:q}"
        " --settings {params.settings:q}"
        " --summary {output.summary:q}"
        " --comparison {output.comparison:q}"
        " {params.more:q}"
        " 2>&1 | tee {log:q}"


rule overlap:
    """Measuring how much of {wildcards.split} stands in the training data and in its neighbours."""
    input:
        config=RECORDED,
        embeddings=lambda wildcards: arrays(WORKFLOW.embeddings("", "embeddings.npy")),
        neighbours=arrays(expand(rules.neighbours.output.ids, retrieval="", allow_missing=True)),
    output:
        runs=[f"{D}/{names.OVERLAP}/{name}.npy" for name in WORKFLOW.overlaps()],
        manifest=f"{D}/{names.OVERLAP}/manifest.json",
    log:
        f"{D}/logs/overlap/{{split}}.log",
    benchmark:
        f"{D}/benchmarks/overlap/{{split}}.jsonl"
    threads: RESOURCES.search_threads
    resources:
        mem_mb=8000,
        runtime="24h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.evaluation.leakage"),
        settings=canonical(WORKFLOW.overlap()),
    shell:
        "python -m retro.evaluation.leakage"
        " --config {input.config:q}"
        " --settings {params.settings:q}"
        " --split {wildcards.split}"
        " --output {output.manifest:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule filtered:
    """Comparing models on text that does not overlap."""
    input:
        config=RECORDED,
        losses=WORKFLOW.losses(),
        overlap=expand(rules.overlap.output.manifest, split=CONFIG.evaluate.splits),
    output:
        table=report(f"{D}/leakage.csv", caption="../docs/captions/leakage.rst", category="Tables"),
    log:
        f"{D}/logs/filtered.log",
    benchmark:
        f"{D}/benchmarks/filtered.jsonl"
    params:
        code=code("retro.evaluation.filtered"),
        settings=rules.summarise.params.settings,
        runs=rules.summarise.params.runs,
    shell:
        "python -m retro.evaluation.filtered"
        " --config {input.config:q}"
        " --losses {input.losses:q}"
        " --overlap {input.overlap:q}"
        " --runs {params.runs:q}"
        " --settings {params.settings:q}"
        " --output {output.table:q}"
        " 2>&1 | tee {log:q}"


rule sample:
    """Writing with live retrieval: {wildcards.run}."""
    input:
        config=RECORDED,
        model=rules.train.output.model,
        weights=arrays(rules.train.output.weights),
    output:
        sample=f"{D}/{names.RUN}/sample.json",
    log:
        f"{D}/logs/sample/{{run}}.log",
    benchmark:
        f"{D}/benchmarks/sample/{{run}}.jsonl"
    threads: RESOURCES.evaluate_threads
    resources:
        mem_mb=8000,
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.generation.sample"),
        settings=canonical(CONFIG.generate.facts()),
    shell:
        "python -m retro.generation.sample"
        " --config {input.config:q}"
        " --model {input.model:q}"
        " --settings {params.settings:q}"
        " --output {output.sample:q}"
        " 2>&1 | tee {log:q}"
