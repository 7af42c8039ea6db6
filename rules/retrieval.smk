"""Retrieval: embeddings to an index, each chunk's neighbours, and the recorded config.

in     {D}/database, {D}/embeddings/<source>
steps  index or bm25_index, neighbours of each split, record; with shards, index_train, index_shard, neighbours_shard before
out    {D}/index, {D}/neighbours/<split>, {D}/config.json, and what a training reads of it: {D}/config-gpt.json,
       {D}/config-retro.json; of a retrieval of the config, what its overrides change below {D}/retrievals/<name>
"""


rule index:
    """Building {wildcards.retrieval}index over the database; with shards, joining them."""
    input:
        database=rules.assemble.output.manifest,
        embeddings=lambda wildcards: WORKFLOW.embeddings(named(wildcards), "manifest.json"),
        arrays=lambda wildcards: arrays(
            rules.assemble.output.rows, WORKFLOW.embeddings(named(wildcards), "embeddings.npy")
        ),
        trained=[f"{D}/{names.INDEX}/shards/trained.faiss"] if WORKFLOW.shards else [],
        shards=shards(f"{D}/{names.INDEX}", "faiss"),
    output:
        index=f"{D}/{names.INDEX}/index.faiss",
        manifest=f"{D}/{names.INDEX}/manifest.json",
    log:
        f"{D}/logs/{{retrieval}}index.log",
    benchmark:
        f"{D}/benchmarks/{{retrieval}}index.jsonl"
    threads: RESOURCES.search_threads
    resources:
        mem_mb=16000,
        runtime="24h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.retrieval.index"),
        settings=lambda wildcards: section(index=RETRIEVALS.built(named(wildcards), "index"), seed=DATASET.seed),
        part=part,
    shell:
        "python -m retro.retrieval.index"
        " --settings {params.settings:q}"
        " --database {input.database:q}"
        " --embeddings {input.embeddings:q}"
        " --trained {input.trained:q}"
        " {params.part:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


use rule index as index_train with:
    """Training {wildcards.retrieval}index on a sample of the database (with shards only)."""
    input:
        **{**dict(rules.index.input.items()), "trained": [], "shards": []},
    output:
        trained=temp(f"{D}/{names.INDEX}/shards/trained.faiss"),
    log:
        f"{D}/logs/{{retrieval}}index.train.log",
    benchmark:
        f"{D}/benchmarks/{{retrieval}}index.train.jsonl"
    params:
        part=lambda wildcards, output: ["--part", "train", "--output", output.trained],


use rule index as index_shard with:
    """Adding shard {wildcards.shard} of the database to {wildcards.retrieval}index, which is trained."""
    output:
        shard=temp(f"{D}/{names.INDEX}/shards/{{shard}}.faiss"),
    log:
        f"{D}/logs/{{retrieval}}index.{{shard}}.log",
    benchmark:
        f"{D}/benchmarks/{{retrieval}}index.{{shard}}.jsonl"
    params:
        part=lambda wildcards, input, output: ["--part", "add", *part(wildcards, input, output)],


rule bm25_index:
    """Building {wildcards.retrieval}bm25, the index over the database's words."""
    input:
        database=rules.assemble.output.manifest,
        tokenizer=rules.train_tokenizer.output.manifest,
        tokens=expand(rules.tokenize.output.manifest, source=SOURCES),
        chunks=rules.assemble.input.chunks,
        arrays=arrays(
            rules.assemble.output.rows, rules.assemble.input.arrays, expand(rules.tokenize.output.bin, source=SOURCES)
        ),
    output:
        files=[f"{D}/{names.BM25}/{name}" for name in BM25_FILES],
        manifest=f"{D}/{names.BM25}/manifest.json",
    log:
        f"{D}/logs/{{retrieval}}bm25.log",
    benchmark:
        f"{D}/benchmarks/{{retrieval}}bm25.jsonl"
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        code=code("retro.retrieval.bm25"),
        settings=lambda wildcards: section(index=RETRIEVALS.built(named(wildcards), "bm25")),
    shell:
        "python -m retro.retrieval.bm25"
        " --settings {params.settings:q}"
        " --database {input.database:q}"
        " --tokenizer {input.tokenizer:q}"
        " --tokens {input.tokens:q}"
        " --chunks {input.chunks:q}"
        " --memory {resources.mem_mb}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"


rule neighbours:
    """Finding the {wildcards.retrieval}neighbours of each {wildcards.split} chunk; with shards, joining them."""
    input:
        database=rules.assemble.output.manifest,
        chunks=rules.assemble.input.chunks,
        embeddings=rules.index.input.embeddings,
        index=lambda wildcards: RETRIEVALS.searched(named(wildcards)),
        tokenizer=lambda wildcards: RETRIEVALS.words(SOURCES, named(wildcards), wildcards.split)[:1],
        tokens=lambda wildcards: RETRIEVALS.words(SOURCES, named(wildcards), wildcards.split)[1:],
        duplicates=WORKFLOW.duplicates("exclude"),
        arrays=lambda wildcards: arrays(
            RETRIEVALS.searched_files(named(wildcards)),
            WORKFLOW.embeddings(named(wildcards), "embeddings.npy"),
            rules.assemble.output.rows,
            rules.assemble.input.arrays,
        ),
        shards=shards(f"{D}/{names.NEIGHBOURS}"),
    output:
        ids=f"{D}/{names.NEIGHBOURS}/ids.npy",
        scores=f"{D}/{names.NEIGHBOURS}/scores.npy",
        manifest=f"{D}/{names.NEIGHBOURS}/manifest.json",
    log:
        f"{D}/logs/{{retrieval}}neighbours/{{split}}.log",
    benchmark:
        f"{D}/benchmarks/{{retrieval}}neighbours/{{split}}.jsonl"
    threads: RESOURCES.search_threads
    resources:
        mem_mb=16000,
        runtime="24h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.retrieval.neighbours"),
        settings=lambda wildcards: section(**RETRIEVALS.searching(named(wildcards), wildcards.split), seed=DATASET.seed),
        part=part,
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
        " {params.part:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


use rule neighbours as neighbours_shard with:
    """Finding the {wildcards.retrieval}neighbours of shard {wildcards.shard} of the {wildcards.split} chunks."""
    output:
        # Finished blocks lie beside it, undeclared: they survive a kill.
        shard=temp(f"{D}/{names.NEIGHBOURS}/shards/{{shard}}.json"),
    log:
        f"{D}/logs/{{retrieval}}neighbours/{{split}}.{{shard}}.log",
    benchmark:
        f"{D}/benchmarks/{{retrieval}}neighbours/{{split}}.{{shard}}.jsonl"


rule record:
    """Recording what preprocessing decided: config{wildcards.cut}.json."""
    input:
        manifests=lambda wildcards: WORKFLOW.manifests(wildcards.cut),
    output:
        config=f"{D}/{names.RECORDED}",
    log:
        f"{D}/logs/record{{cut}}.log",
    benchmark:
        f"{D}/benchmarks/record{{cut}}.jsonl"
    priority: 1  # before embedding: trainings wait for it
    params:
        code=code("retro.dataset.dataset"),
        settings=lambda wildcards: canonical(WORKFLOW.recorded_facts(wildcards.cut)),
    shell:
        "python -m retro.dataset.dataset"
        " --settings {params.settings:q}"
        " --manifests {input.manifests:q}"
        " --output {output.config:q}"
        " 2>&1 | tee {log:q}"


rule preprocess:
    """The retrieval database, its index, the neighbours and the recorded config."""
    input:
        WORKFLOW.preprocessed(),


rule retrievals:
    """The neighbours of the evaluated splits by every retrieval of the config."""
    input:
        WORKFLOW.retrieved(),
