"""Database: tokens to chunks and embeddings.

in     {D}/tokens/<source>
steps  chunk and embed, one job a source (embed_shard: part of it); assemble lists the chunks of the database and of each split
out    {D}/chunks/<source>, {D}/embeddings/<source>, {D}/database
"""


rule chunk:
    """Cutting the documents of {wildcards.source} into chunks."""
    input:
        tokenizer=rules.train_tokenizer.output.manifest,
        tokens=rules.tokenize.output.manifest,
        arrays=arrays(rules.tokenize.output.bin, rules.tokenize.output.idx, rules.tokenize.output.documents),
    output:
        chunks=f"{D}/chunks/{{source}}/chunks.npy",
        manifest=f"{D}/chunks/{{source}}/manifest.json",
    log:
        f"{D}/logs/chunk/{{source}}.log",
    benchmark:
        f"{D}/benchmarks/chunk/{{source}}.jsonl"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="4h",
    params:
        code=code("retro.database.chunk"),
        settings=section(chunk_length=DATASET.chunk_length),
    shell:
        "python -m retro.database.chunk"
        " --settings {params.settings:q}"
        " --tokenizer {input.tokenizer:q}"
        " --tokens {input.tokens:q}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"


rule embed_shard:
    """Embedding shard {wildcards.shard} of {wildcards.source}."""
    input:
        tokenizer=rules.train_tokenizer.output.manifest,
        tokens=rules.tokenize.output.manifest,
        chunks=rules.chunk.output.manifest,
        arrays=arrays(rules.tokenize.output.bin, rules.chunk.output.chunks),
    output:
        # Finished blocks lie beside it, undeclared: they survive a kill.
        note=temp(f"{D}/embeddings/{{source}}/shards/{{shard}}.json"),
    log:
        f"{D}/logs/embed/{{source}}.{{shard}}.log",
    benchmark:
        f"{D}/benchmarks/embed/{{source}}.{{shard}}.jsonl"
    threads: RESOURCES.embed_threads
    resources:
        mem_mb=8000,
        runtime="24h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.database.embed"),
        settings=section(encoder=WHOLE["encoder"], chunk_length=DATASET.chunk_length),
    shell:
        "python -m retro.database.embed"
        " --settings {params.settings:q}"
        " --tokenizer {input.tokenizer:q}"
        " --tokens {input.tokens:q}"
        " --chunks {input.chunks:q}"
        " --shard {wildcards.shard}"
        " --output {output.note:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule embed:
    """Embedding the chunks of {wildcards.source}; with shards, joining them."""
    input:
        tokenizer=rules.train_tokenizer.output.manifest,
        tokens=rules.tokenize.output.manifest,
        chunks=rules.chunk.output.manifest,
        arrays=arrays(rules.tokenize.output.bin, rules.chunk.output.chunks),
        shards=shards(f"{D}/embeddings/{{source}}"),
    output:
        embeddings=f"{D}/embeddings/{{source}}/embeddings.npy",
        manifest=f"{D}/embeddings/{{source}}/manifest.json",
    log:
        f"{D}/logs/embed/{{source}}.log",
    benchmark:
        f"{D}/benchmarks/embed/{{source}}.jsonl"
    threads: RESOURCES.embed_threads
    resources:
        mem_mb=8000,
        runtime="24h",
        gpu=0 if SHARDS else RESOURCES.gpus,
    params:
        code=code("retro.database.embed"),
        settings=section(encoder=WHOLE["encoder"], chunk_length=DATASET.chunk_length),
        blocks=f"{D}/embeddings/{{source}}/blocks",  # undeclared: finished blocks survive a kill
    shell:
        "python -m retro.database.embed"
        " --settings {params.settings:q}"
        " --tokenizer {input.tokenizer:q}"
        " --tokens {input.tokens:q}"
        " --chunks {input.chunks:q}"
        " --shards {input.shards:q}"
        " --blocks {params.blocks:q}"
        " --output {output.manifest:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule assemble:
    """Listing the chunks of the database and of each split."""
    input:
        chunks=expand(rules.chunk.output.manifest, source=SOURCES),
        arrays=arrays(expand(rules.chunk.output.chunks, source=SOURCES)),
        duplicates=duplicates("drop"),
    output:
        rows=[f"{D}/database/{name}.npy" for name in ["database", *SPLITS]],
        manifest=f"{D}/database/manifest.json",
    log:
        f"{D}/logs/assemble.log",
    benchmark:
        f"{D}/benchmarks/assemble.jsonl"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="2h",
    params:
        code=code("retro.database.assemble"),
        settings=section(
            sources={
                name: {key: source[key] for key in ["train", "database"]} for name, source in WHOLE["sources"].items()
            }
        ),
    shell:
        "python -m retro.database.assemble"
        " --settings {params.settings:q}"
        " --chunks {input.chunks:q}"
        " --duplicates {input.duplicates:q}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"
