"""Alternative retrievals of the dataset, for evaluation: other retrievers, encoders, indexes, exclusions.

in     {D}/database, {D}/tokens, {D}/chunks, {D}/embeddings
steps  what the overrides of a retrieval change: embed, index or bm25; then the neighbours of a split; all but bm25 in
       shards as the dataset's own
out    {D}/retrievals/<name>/neighbours/<split>, and beside it what was made for it
"""


rule words:
    """Building the BM25 index over the database."""
    input:
        database=rules.assemble.output.manifest,
        tokenizer=rules.train_tokenizer.output.manifest,
        tokens=expand(rules.tokenize.output.manifest, source=SOURCES),
        chunks=rules.assemble.input.chunks,
        arrays=arrays(
            rules.assemble.output.rows, rules.assemble.input.arrays, expand(rules.tokenize.output.bin, source=SOURCES)
        ),
    output:
        files=[f"{D}/bm25/{name}" for name in BM25_FILES],
        manifest=f"{D}/bm25/manifest.json",
    log:
        f"{D}/logs/bm25.log",
    benchmark:
        f"{D}/benchmarks/bm25.jsonl"
    threads: 1
    resources:
        mem_mb=16000,
        runtime="24h",
    params:
        code=code("retro.retrieval.bm25_index"),
        settings=section(index=RETRIEVALS.built("", "bm25")),
    shell:
        "python -m retro.retrieval.bm25_index"
        " --settings {params.settings:q}"
        " --database {input.database:q}"
        " --tokenizer {input.tokenizer:q}"
        " --tokens {input.tokens:q}"
        " --chunks {input.chunks:q}"
        " --memory {resources.mem_mb}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"


use rule words as retrieval_words with:
    output:
        files=[f"{D}/retrievals/{{retrieval}}/bm25/{name}" for name in BM25_FILES],
        manifest=f"{D}/retrievals/{{retrieval}}/bm25/manifest.json",
    log:
        f"{D}/logs/retrievals/{{retrieval}}/bm25.log",
    benchmark:
        f"{D}/benchmarks/retrievals/{{retrieval}}/bm25.jsonl"
    params:
        code=code("retro.retrieval.bm25_index"),
        settings=lambda wildcards: section(index=RETRIEVALS.built(wildcards.retrieval, "bm25")),


use rule embed_shard as retrieval_embed_shard with:
    output:
        note=temp(f"{D}/retrievals/{{retrieval}}/embeddings/{{source}}/shards/{{shard}}.json"),
    log:
        f"{D}/logs/retrievals/{{retrieval}}/embed/{{source}}.{{shard}}.log",
    benchmark:
        f"{D}/benchmarks/retrievals/{{retrieval}}/embed/{{source}}.{{shard}}.jsonl"
    params:
        code=code("retro.database.embed"),
        settings=lambda wildcards: section(
            encoder=RETRIEVALS.facts[wildcards.retrieval]["encoder"], chunk_length=DATASET.chunk_length
        ),


use rule embed as retrieval_embed with:
    input:
        tokenizer=rules.embed.input.tokenizer,
        tokens=rules.embed.input.tokens,
        chunks=rules.embed.input.chunks,
        arrays=rules.embed.input.arrays,
        shards=shards(f"{D}/retrievals/{{retrieval}}/embeddings/{{source}}"),
    output:
        embeddings=f"{D}/retrievals/{{retrieval}}/embeddings/{{source}}/embeddings.npy",
        manifest=f"{D}/retrievals/{{retrieval}}/embeddings/{{source}}/manifest.json",
    log:
        f"{D}/logs/retrievals/{{retrieval}}/embed/{{source}}.log",
    benchmark:
        f"{D}/benchmarks/retrievals/{{retrieval}}/embed/{{source}}.jsonl"
    params:
        code=code("retro.database.embed"),
        settings=lambda wildcards: section(
            encoder=RETRIEVALS.facts[wildcards.retrieval]["encoder"], chunk_length=DATASET.chunk_length
        ),
        blocks=f"{D}/retrievals/{{retrieval}}/embeddings/{{source}}/blocks",


use rule index_train as retrieval_index_train with:
    input:
        database=rules.assemble.output.manifest,
        embeddings=lambda wildcards: embeddings_of(wildcards.retrieval, "manifest.json"),
        arrays=lambda wildcards: arrays(
            rules.assemble.output.rows, embeddings_of(wildcards.retrieval, "embeddings.npy")
        ),
    output:
        trained=temp(f"{D}/retrievals/{{retrieval}}/index/shards/trained.faiss"),
    log:
        f"{D}/logs/retrievals/{{retrieval}}/index.train.log",
    benchmark:
        f"{D}/benchmarks/retrievals/{{retrieval}}/index.train.jsonl"
    params:
        code=code("retro.retrieval.index"),
        settings=lambda wildcards: section(index=RETRIEVALS.built(wildcards.retrieval, "index"), seed=DATASET.seed),


use rule index_shard as retrieval_index_shard with:
    input:
        database=rules.retrieval_index_train.input.database,
        embeddings=rules.retrieval_index_train.input.embeddings,
        arrays=rules.retrieval_index_train.input.arrays,
        trained=rules.retrieval_index_train.output.trained,
    output:
        part=temp(f"{D}/retrievals/{{retrieval}}/index/shards/{{shard}}.faiss"),
    log:
        f"{D}/logs/retrievals/{{retrieval}}/index.{{shard}}.log",
    benchmark:
        f"{D}/benchmarks/retrievals/{{retrieval}}/index.{{shard}}.jsonl"
    params:
        code=rules.retrieval_index_train.params.code,
        settings=rules.retrieval_index_train.params.settings,


use rule index as retrieval_index with:
    input:
        database=rules.retrieval_index_train.input.database,
        embeddings=rules.retrieval_index_train.input.embeddings,
        arrays=rules.retrieval_index_train.input.arrays,
        trained=[rules.retrieval_index_train.output.trained] if SHARDS else [],
        shards=shards(f"{D}/retrievals/{{retrieval}}/index", "faiss"),
    output:
        index=f"{D}/retrievals/{{retrieval}}/index/index.faiss",
        manifest=f"{D}/retrievals/{{retrieval}}/index/manifest.json",
    log:
        f"{D}/logs/retrievals/{{retrieval}}/index.log",
    benchmark:
        f"{D}/benchmarks/retrievals/{{retrieval}}/index.jsonl"
    params:
        code=code("retro.retrieval.index"),
        settings=lambda wildcards: section(index=RETRIEVALS.built(wildcards.retrieval, "index"), seed=DATASET.seed),


use rule neighbours_shard as retrieval_neighbours_shard with:
    input:
        database=rules.assemble.output.manifest,
        chunks=rules.assemble.input.chunks,
        embeddings=lambda wildcards: embeddings_of(wildcards.retrieval, "manifest.json"),
        index=lambda wildcards: RETRIEVALS.searched(wildcards.retrieval)[0],
        tokenizer=lambda wildcards: RETRIEVALS.words(SOURCES, wildcards.retrieval)[:1],
        tokens=lambda wildcards: RETRIEVALS.words(SOURCES, wildcards.retrieval)[1:],
        arrays=lambda wildcards: arrays(
            RETRIEVALS.searched(wildcards.retrieval)[1:],
            embeddings_of(wildcards.retrieval, "embeddings.npy"),
            rules.assemble.output.rows,
            rules.assemble.input.arrays,
        ),
        duplicates=duplicates("exclude"),
    output:
        note=temp(f"{D}/retrievals/{{retrieval}}/neighbours/{{split}}/shards/{{shard}}.json"),
    log:
        f"{D}/logs/retrievals/{{retrieval}}/neighbours/{{split}}.{{shard}}.log",
    benchmark:
        f"{D}/benchmarks/retrievals/{{retrieval}}/neighbours/{{split}}.{{shard}}.jsonl"
    params:
        code=code("retro.retrieval.neighbours"),
        settings=lambda wildcards: section(**RETRIEVALS.searching(wildcards.retrieval), seed=DATASET.seed),


use rule neighbours as retrieval_neighbours with:
    input:
        database=rules.retrieval_neighbours_shard.input.database,
        chunks=rules.retrieval_neighbours_shard.input.chunks,
        embeddings=rules.retrieval_neighbours_shard.input.embeddings,
        index=rules.retrieval_neighbours_shard.input.index,
        tokenizer=rules.retrieval_neighbours_shard.input.tokenizer,
        tokens=rules.retrieval_neighbours_shard.input.tokens,
        arrays=rules.retrieval_neighbours_shard.input.arrays,
        duplicates=rules.retrieval_neighbours_shard.input.duplicates,
        shards=shards(f"{D}/retrievals/{{retrieval}}/neighbours/{{split}}"),
    output:
        ids=f"{D}/retrievals/{{retrieval}}/neighbours/{{split}}/ids.npy",
        scores=f"{D}/retrievals/{{retrieval}}/neighbours/{{split}}/scores.npy",
        manifest=f"{D}/retrievals/{{retrieval}}/neighbours/{{split}}/manifest.json",
    log:
        f"{D}/logs/retrievals/{{retrieval}}/neighbours/{{split}}.log",
    benchmark:
        f"{D}/benchmarks/retrievals/{{retrieval}}/neighbours/{{split}}.jsonl"
    params:
        code=code("retro.retrieval.neighbours"),
        settings=lambda wildcards: section(**RETRIEVALS.searching(wildcards.retrieval), seed=DATASET.seed),


rule retrievals:
    """The neighbours of the evaluated splits by every retrieval of the config."""
    input:
        retrieved(),


if DENSE:

    rule indexes:
        """What the indexes of the config's retrievals find, and at what cost; the next `snakemake` puts it in the report."""
        input:
            config=rules.record.output.config,
            neighbours=[f"{D}/retrievals/{name}/neighbours/{CONFIG.evaluate.splits[0]}/manifest.json" for name in DENSE],
            indexes=[RETRIEVALS.searched(name)[0] for name in DENSE],
            arrays=arrays(*[RETRIEVALS.searched(name)[1:] for name in DENSE]),
        output:
            csv=f"{D}/figures/indexes.csv",
            svg=report(f"{D}/figures/indexes.svg", caption="../docs/captions/indexes.rst", category="Figures"),
            png=f"{D}/figures/indexes.png",
            part=f"{D}/parts/indexes.html",
        log:
            f"{D}/logs/indexes.log",
        benchmark:
            f"{D}/benchmarks/indexes.jsonl"
        threads: 1
        resources:
            mem_mb=8000,
            runtime="4h",
        params:
            code=code("retro.report.indexes"),
            names=DENSE,
            split=CONFIG.evaluate.splits[0],
            folder=lambda wildcards, output: os.path.dirname(output.svg),
        shell:
            "python -m retro.report.indexes"
            " --config {input.config:q}"
            " --names {params.names:q}"
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
            lambda wildcards: dense(),
