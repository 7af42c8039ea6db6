"""Training: the recorded config and its artifacts to models.

in     {D}/config-retro.json, the database, index and neighbours that it records; of a GPT {D}/config-gpt.json
steps  train, one job a run and seed
out    {D}/runs/<run>: model.safetensors, model.json, metrics.jsonl
"""


rule train:
    """Training {wildcards.run}."""
    input:
        config=lambda wildcards: WORKFLOW.recorded(wildcards.run),
        manifests=lambda wildcards: WORKFLOW.manifests(WORKFLOW.cut(wildcards.run)),
        text=lambda wildcards: arrays(WORKFLOW.text(wildcards.run)),
        retrieval=lambda wildcards: arrays(WORKFLOW.retrieval(wildcards.run)),  # database, index, neighbours; not of a GPT
        initial=lambda wildcards: WORKFLOW.begun(wildcards.run)[0] or [],
        given=lambda wildcards: elsewhere(
            WORKFLOW.begun(wildcards.run)[1][:1], f"{WORKFLOW.path(names.RUN, run=wildcards.run)}/model.json"
        ),
    output:
        weights=f"{D}/{names.RUN}/model.safetensors",
        model=f"{D}/{names.RUN}/model.json",
        metrics=f"{D}/{names.RUN}/metrics.jsonl",
    log:
        f"{D}/logs/train/{{run}}.log",
    benchmark:
        f"{D}/benchmarks/train/{{run}}.jsonl"
    priority: 1000  # the longest jobs begin first
    container:
        None if RESOURCES.nodes > 1 else IMAGE
    threads: lambda wildcards: RUNS[wildcards.run].train.threads * RESOURCES.processes
    resources:  # of each node; the last three place the processes of several nodes
        mem_mb=8000 * RESOURCES.processes,
        runtime="24h",
        nodes=RESOURCES.nodes,
        gpu=RESOURCES.processes if RESOURCES.gpus and RESOURCES.nodes == 1 else 0,
        launch=launch(),  # not a param: what is trained does not depend on it, nor on trackers
        trackers=lambda wildcards: ",".join(RUNS[wildcards.run].train.trackers) or "none",
        mpi="srun" if RESOURCES.nodes > 1 else None,
        tasks=RESOURCES.nodes if RESOURCES.nodes > 1 else None,
        slurm_extra=f"--gpus-per-node={RESOURCES.processes}" if RESOURCES.gpus and RESOURCES.nodes > 1 else None,
    params:
        code=code("retro.training.train"),
        content=lambda wildcards: content(WORKFLOW.begun(wildcards.run)[1]),
        run=lambda wildcards: canonical(RUNS[wildcards.run].facts()),
        checkpoints=f"{D}/{names.RUN}/checkpoints",  # undeclared: they survive failures and retries
    shell:
        "python -m retro.training.launch {resources.launch} --"
        " --config {input.config:q}"
        " --run {params.run:q}"
        " --checkpoints {params.checkpoints:q}"
        " --output {output.model:q}"
        " --trackers {resources.trackers:q}"
        " 2>&1 | tee {log:q}"


rule train_all:
    """Every model, without evaluation and report."""
    input:
        WORKFLOW.models(),
