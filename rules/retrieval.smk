"""Retrieval: embeddings to an index, each chunk's neighbours, and the recorded config.

in     {D}/database, {D}/embeddings/<source>
steps  index, neighbours of each split, record; with shards, index_train, index_shard and neighbours_shard before
out    {D}/index, {D}/neighbours/<split>, {D}/config.json
"""


rule index_train:
    """Training the index on a sample of the database (with shards only)."""
    input:
        database=rules.assemble.output.manifest,
        embeddings=expand(rules.embed.output.manifest, source=SOURCES),
        arrays=arrays(rules.assemble.output.rows, expand(rules.embed.output.embeddings, source=SOURCES)),
    output:
        trained=temp(f"{D}/index/shards/trained.faiss"),
    log:
        f"{D}/logs/index.train.log",
    benchmark:
        f"{D}/benchmarks/index.train.jsonl"
    threads: RESOURCES.search_threads
    resources:
        mem_mb=16000,
        runtime="24h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.retrieval.index"),
        settings=section(index=RETRIEVALS.built("", "index"), seed=DATASET.seed),
    shell:
        "python -m retro.retrieval.index"
        " --settings {params.settings:q}"
        " --database {input.database:q}"
        " --embeddings {input.embeddings:q}"
        " --part train"
        " --output {output.trained:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule index_shard:
    """Adding shard {wildcards.shard} of the database to the trained index."""
    input:
        database=rules.index_train.input.database,
        embeddings=rules.index_train.input.embeddings,
        arrays=rules.index_train.input.arrays,
        trained=rules.index_train.output.trained,
    output:
        part=temp(f"{D}/index/shards/{{shard}}.faiss"),
    log:
        f"{D}/logs/index.{{shard}}.log",
    benchmark:
        f"{D}/benchmarks/index.{{shard}}.jsonl"
    threads: RESOURCES.search_threads
    resources:
        mem_mb=16000,
        runtime="24h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.retrieval.index"),
        settings=section(index=RETRIEVALS.built("", "index"), seed=DATASET.seed),
    shell:
        "python -m retro.retrieval.index"
        " --settings {params.settings:q}"
        " --database {input.database:q}"
        " --embeddings {input.embeddings:q}"
        " --part add"
        " --trained {input.trained:q}"
        " --shard {wildcards.shard}"
        " --output {output.part:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule index:
    """Building the index over the database; with shards, joining them."""
    input:
        database=rules.index_train.input.database,
        embeddings=rules.index_train.input.embeddings,
        arrays=rules.index_train.input.arrays,
        trained=[rules.index_train.output.trained] if SHARDS else [],
        shards=shards(f"{D}/index", "faiss"),
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
        settings=section(index=RETRIEVALS.built("", "index"), seed=DATASET.seed),
    shell:
        "python -m retro.retrieval.index"
        " --settings {params.settings:q}"
        " --database {input.database:q}"
        " --embeddings {input.embeddings:q}"
        " --trained {input.trained:q}"
        " --shards {input.shards:q}"
        " --output {output.manifest:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule neighbours_shard:
    """Finding the neighbours of shard {wildcards.shard} of the {wildcards.split} chunks."""
    input:
        database=rules.assemble.output.manifest,
        chunks=rules.assemble.input.chunks,
        embeddings=rules.index.input.embeddings,
        index=RETRIEVALS.searched()[0],
        tokenizer=RETRIEVALS.words(SOURCES)[:1],
        tokens=RETRIEVALS.words(SOURCES)[1:],
        duplicates=duplicates("exclude"),
        arrays=arrays(RETRIEVALS.searched()[1:], rules.index.input.arrays, rules.assemble.input.arrays),
    output:
        # Finished blocks lie beside it, undeclared: they survive a kill.
        note=temp(f"{D}/neighbours/{{split}}/shards/{{shard}}.json"),
    log:
        f"{D}/logs/neighbours/{{split}}.{{shard}}.log",
    benchmark:
        f"{D}/benchmarks/neighbours/{{split}}.{{shard}}.jsonl"
    threads: RESOURCES.search_threads
    resources:
        mem_mb=16000,
        runtime="24h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.retrieval.neighbours"),
        settings=section(**RETRIEVALS.searching(""), seed=DATASET.seed),
    shell:
        "python -m retro.retrieval.neighbours"
        " --settings {params.settings:q}"
        " --split {wildcards.split}"
        " --database {input.database:q}"
        " --chunks {input.chunks:q}"
        " --embeddings {input.embeddings:q}"
        " --index {input.index:q}"
        " --tokenizer {input.tokenizer:q}"
        " --tokens {input.tokens:q}"
        " --duplicates {input.duplicates:q}"
        " --shard {wildcards.shard}"
        " --output {output.note:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule neighbours:
    """Finding the neighbours of each {wildcards.split} chunk; with shards, joining them."""
    input:
        database=rules.assemble.output.manifest,
        chunks=rules.assemble.input.chunks,
        embeddings=rules.index.input.embeddings,
        index=RETRIEVALS.searched()[0],
        tokenizer=RETRIEVALS.words(SOURCES)[:1],
        tokens=RETRIEVALS.words(SOURCES)[1:],
        duplicates=duplicates("exclude"),
        arrays=arrays(RETRIEVALS.searched()[1:], rules.index.input.arrays, rules.assemble.input.arrays),
        shards=shards(f"{D}/neighbours/{{split}}"),
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
        settings=section(**RETRIEVALS.searching(""), seed=DATASET.seed),
    shell:
        "python -m retro.retrieval.neighbours"
        " --settings {params.settings:q}"
        " --split {wildcards.split}"
        " --database {input.database:q}"
        " --chunks {input.chunks:q}"
        " --embeddings {input.embeddings:q}"
        " --index {input.index:q}"
        " --tokenizer {input.tokenizer:q}"
        " --tokens {input.tokens:q}"
        " --shards {input.shards:q}"
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
