"""Retrieval: embeddings to an index, each chunk's neighbours, and the recorded config.

in     {D}/database, {D}/embeddings/<source>
steps  index, neighbours of each split, record
out    {D}/index, {D}/neighbours/<split>, {D}/config.json
"""


rule index:
    """Building the index over the database."""
    input:
        database=rules.assemble.output.manifest,
        embeddings=expand(rules.embed.output.manifest, source=SOURCES),
        arrays=arrays(rules.assemble.output.rows, expand(rules.embed.output.embeddings, source=SOURCES)),
    output:
        index=f"{D}/index/index.faiss",
        manifest=f"{D}/index/manifest.json",
    log:
        f"{D}/logs/index.log",
    benchmark:
        f"{D}/benchmarks/index.jsonl"
    threads: RESOURCES.search_threads
    resources:
        mem_mb=16000,
        runtime="24h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.retrieval.index"),
        settings=section(index=WHOLE["index"], seed=DATASET.seed),
    shell:
        "python -m retro.retrieval.index"
        " --settings {params.settings:q}"
        " --database {input.database:q}"
        " --embeddings {input.embeddings:q}"
        " --output {output.manifest:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule neighbours:
    """Finding the neighbours of each {wildcards.split} chunk."""
    input:
        database=rules.assemble.output.manifest,
        chunks=rules.assemble.input.chunks,
        embeddings=rules.index.input.embeddings,
        index=rules.index.output.manifest,
        arrays=arrays(rules.index.output.index, rules.index.input.arrays, rules.assemble.input.arrays),
        duplicates=duplicates("exclude"),
    output:
        ids=f"{D}/neighbours/{{split}}/ids.npy",
        scores=f"{D}/neighbours/{{split}}/scores.npy",
        manifest=f"{D}/neighbours/{{split}}/manifest.json",
    log:
        f"{D}/logs/neighbours/{{split}}.log",
    benchmark:
        f"{D}/benchmarks/neighbours/{{split}}.jsonl"
    threads: RESOURCES.search_threads
    resources:
        mem_mb=16000,
        runtime="24h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.retrieval.neighbours"),
        settings=section(**{key: WHOLE[key] for key in ["neighbours", "index", "seed"]}),
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


rule record:
    """Recording what preprocessing decided."""
    input:
        manifests=manifests(),
    output:
        config=f"{D}/config.json",
    log:
        f"{D}/logs/record.log",
    benchmark:
        f"{D}/benchmarks/record.jsonl"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=code("retro.record"),
        settings=canonical(WHOLE),
    shell:
        "python -m retro.record"
        " --settings {params.settings:q}"
        " --manifests {input.manifests:q}"
        " --output {output.config:q}"
        " 2>&1 | tee {log:q}"


rule preprocess:
    """The retrieval database, its index, the neighbours and the recorded config."""
    input:
        preprocessed(),
