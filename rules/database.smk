"""Database: tokens to chunks and embeddings.

in     {D}/tokens/<source>
steps  chunk and embed, one job a source (embed_shard: part of it); assemble lists the chunks of the database and of each split
out    {D}/chunks/<source>, {D}/embeddings/<source>, {D}/database; {D}/retrievals/<name>/embeddings/<source> for a retrieval
       of the config that has an encoder of its own
"""


rule chunk:
    """Cutting the documents of {wildcards.source} into chunks."""
    input:
        tokenizer=rules.train_tokenizer.output.manifest,
        tokens=rules.tokenize.output.manifest,
        arrays=arrays(rules.tokenize.output.bin, rules.tokenize.output.idx, rules.tokenize.output.documents),
    output:
        chunks=f"{D}/{names.CHUNKS}/chunks.npy",
        manifest=f"{D}/{names.CHUNKS}/manifest.json",
    log:
        f"{D}/logs/chunk/{{source}}.log",
    benchmark:
        f"{D}/benchmarks/chunk/{{source}}.jsonl"
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


rule embed:
    """Embedding the chunks of {wildcards.source} for {wildcards.retrieval}embeddings; with shards, joining them."""
    input:
        tokenizer=rules.train_tokenizer.output.manifest,
        tokens=rules.tokenize.output.manifest,
        chunks=rules.chunk.output.manifest,
        arrays=arrays(rules.tokenize.output.bin, rules.chunk.output.chunks),
        shards=shards(f"{D}/{names.EMBEDDINGS}"),
    output:
        # Finished blocks lie beside it, undeclared: they survive a kill.
        embeddings=f"{D}/{names.EMBEDDINGS}/embeddings.npy",
        manifest=f"{D}/{names.EMBEDDINGS}/manifest.json",
    log:
        f"{D}/logs/{{retrieval}}embed/{{source}}.log",
    benchmark:
        f"{D}/benchmarks/{{retrieval}}embed/{{source}}.jsonl"
    threads: beside_training(RESOURCES.embed_threads)
    resources:
        mem_mb=8000,
        runtime="24h",
        gpu=lambda wildcards: 0 if WORKFLOW.shards and "shard" not in wildcards.keys() else RESOURCES.gpus,
        keep=f"--keep {shlex.quote(CONFIG.results)}/.embeddings --keep-gb {RESOURCES.kept_gb}",  # no param: changes no byte
    params:
        code=code("retro.database.embed"),
        content=lambda wildcards: content(WORKFLOW.encoder_files(named(wildcards), wildcards.source)),
        settings=lambda wildcards: section(**RETRIEVALS.embedded(named(wildcards)), chunk_length=DATASET.chunk_length),
        part=part,
    shell:
        "python -m retro.database.embed"
        " --settings {params.settings:q}"
        " --tokenizer {input.tokenizer:q}"
        " --tokens {input.tokens:q}"
        " --chunks {input.chunks:q} {resources.keep}"
        " {params.part:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


use rule embed as embed_shard with:
    """Embedding shard {wildcards.shard} of {wildcards.source} for {wildcards.retrieval}embeddings."""
    output:
        shard=temp(f"{D}/{names.EMBEDDINGS}/shards/{{shard}}.json"),
    log:
        f"{D}/logs/{{retrieval}}embed/{{source}}.{{shard}}.log",
    benchmark:
        f"{D}/benchmarks/{{retrieval}}embed/{{source}}.{{shard}}.jsonl"


rule assemble:
    """Listing the chunks of the database and of each split."""
    input:
        chunks=expand(rules.chunk.output.manifest, source=SOURCES),
        arrays=arrays(expand(rules.chunk.output.chunks, source=SOURCES)),
        duplicates=WORKFLOW.duplicates("drop"),
    output:
        rows=[f"{D}/{names.DATABASE}/{name}.npy" for name in ["database", *LISTED]],
        manifest=f"{D}/{names.DATABASE}/manifest.json",
    log:
        f"{D}/logs/assemble.log",
    benchmark:
        f"{D}/benchmarks/assemble.jsonl"
    params:
        code=code("retro.database.assemble"),
        settings=section(sources=WORKFLOW.uses("train", "database")),
    shell:
        "python -m retro.database.assemble"
        " --settings {params.settings:q}"
        " --chunks {input.chunks:q}"
        " --duplicates {input.duplicates:q}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"
