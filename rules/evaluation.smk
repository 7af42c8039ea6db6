"""Evaluation: models to per-token losses, bits per byte, comparisons and samples.

in     {D}/config.json, {D}/runs/<run>
steps  losses for each run, split and retrieval mode; summarise; sample
out    {D}/runs/<run>/evaluation, {D}/summary.csv, {D}/comparison.csv, {D}/sections.csv, {D}/runs/<run>/sample.json
"""


rule losses:
    """Measuring {wildcards.run} on {wildcards.split}, retrieval {wildcards.mode}."""
    input:
        config=rules.record.output.config,
        model=rules.train.output.model,
        weights=arrays(rules.train.output.weights),
    output:
        losses=f"{D}/runs/{{run}}/evaluation/{{split}}/{{mode}}/losses.npy",
        manifest=f"{D}/runs/{{run}}/evaluation/{{split}}/{{mode}}/manifest.json",
    log:
        f"{D}/logs/losses/{{run}}.{{split}}.{{mode}}.log",
    benchmark:
        f"{D}/benchmarks/losses/{{run}}.{{split}}.{{mode}}.jsonl"
    threads: RESOURCES.evaluate_threads
    resources:
        mem_mb=8000,
        runtime="4h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.evaluation.losses"),
        settings=canonical(CONFIG.evaluate.losses_facts()),
    shell:
        "python -m retro.evaluation.losses"
        " --config {input.config:q}"
        " --model {input.model:q}"
        " --settings {params.settings:q}"
        " --split {wildcards.split}"
        " --mode {wildcards.mode}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"


rule summarise:
    """Comparing every RETRO run with its GPT twin."""
    input:
        config=rules.record.output.config,
        losses=losses(),
    output:
        summary=report(f"{D}/summary.csv", caption="../docs/captions/summary.rst", category="Tables"),
        comparison=report(f"{D}/comparison.csv", caption="../docs/captions/comparison.rst", category="Tables"),
        sections=report(f"{D}/sections.csv", caption="../docs/captions/sections.rst", category="Tables"),
    log:
        f"{D}/logs/summarise.log",
    benchmark:
        f"{D}/benchmarks/summarise.jsonl"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        code=code("retro.evaluation.summarise"),
        settings=canonical(CONFIG.evaluate.facts()),
        # In the config's order: the first RETRO run is the one that the report is about.
        runs=json.dumps({name: {"twin": run["twin"], "seed": run["seed"]} for name, run in RUNS.items()}),
    shell:
        "python -m retro.evaluation.summarise"
        " --config {input.config:q}"
        " --losses {input.losses:q}"
        " --runs {params.runs:q}"
        " --settings {params.settings:q}"
        " --summary {output.summary:q}"
        " --comparison {output.comparison:q}"
        " --sections {output.sections:q}"
        " 2>&1 | tee {log:q}"


rule sample:
    """Writing with live retrieval: {wildcards.run}."""
    input:
        config=rules.record.output.config,
        model=rules.train.output.model,
        weights=arrays(rules.train.output.weights),
    output:
        sample=f"{D}/runs/{{run}}/sample.json",
    log:
        f"{D}/logs/sample/{{run}}.log",
    benchmark:
        f"{D}/benchmarks/sample/{{run}}.jsonl"
    threads: RESOURCES.evaluate_threads
    resources:
        mem_mb=8000,
        runtime="1h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.evaluation.sample"),
        settings=canonical(CONFIG.generate.facts()),
    shell:
        "python -m retro.evaluation.sample"
        " --config {input.config:q}"
        " --model {input.model:q}"
        " --settings {params.settings:q}"
        " --output {output.sample:q}"
        " 2>&1 | tee {log:q}"
