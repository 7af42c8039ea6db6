"""Corpus: documents to tokens.

in     the sources of the config
steps  train_tokenizer, then tokenize, one job a source (tokenize_shard: part of it)
out    {D}/tokenizer, {D}/tokens/<source>
"""

# Sources that the tokenizer is trained on: none where it is given, so that a new source changes nothing of the others.
LEARNED_FROM = {name: each for name, each in READ.items() if each["train"] and DATASET.tokenizer.type == "bpe"}


rule train_tokenizer:
    """Training the tokenizer on the train split, or taking the given one."""
    input:
        sources=[file for name in SOURCES if name in LEARNED_FROM for file in SOURCE_FILES[name]],
        given=[path for path in [DATASET.tokenizer.path, DATASET.tokenizer.merges] if path],
    output:
        files=[f"{D}/tokenizer/{name}" for name in TOKENIZER_FILES[DATASET.tokenizer.type]],
        manifest=f"{D}/tokenizer/manifest.json",
    log:
        f"{D}/logs/train_tokenizer.log",
    benchmark:
        f"{D}/benchmarks/train_tokenizer.jsonl"
    threads: RESOURCES.tokenize_threads
    resources:
        mem_mb=4000,
        runtime="4h",
    params:
        code=code("retro.corpus.train_tokenizer"),
        settings=section(
            sources=LEARNED_FROM,
            **{key: WHOLE[key] for key in ["tokenizer", "split", "seed", "on_error"]},
        ),
    shell:
        "python -m retro.corpus.train_tokenizer"
        " --settings {params.settings:q}"
        " --output {output.manifest:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule tokenize_shard:
    """Tokenizing shard {wildcards.shard} of {wildcards.source}."""
    input:
        sources=lambda wildcards: SOURCE_FILES[wildcards.source],
        tokenizer=rules.train_tokenizer.output.manifest,
    output:
        # Its own token store lies beside it, undeclared, until it is joined.
        note=temp(f"{D}/tokens/{{source}}/shards/{{shard}}.json"),
    log:
        f"{D}/logs/tokenize/{{source}}.{{shard}}.log",
    benchmark:
        f"{D}/benchmarks/tokenize/{{source}}.{{shard}}.jsonl"
    threads: RESOURCES.tokenize_threads
    resources:
        mem_mb=4000,
        runtime="12h",
    params:
        code=code("retro.corpus.tokenize"),
        settings=lambda wildcards: section(
            name=wildcards.source,
            source=READ[wildcards.source],
            **{key: WHOLE[key] for key in ["split", "seed", "on_error"]},
        ),
    shell:
        "python -m retro.corpus.tokenize"
        " --settings {params.settings:q}"
        " --tokenizer {input.tokenizer:q}"
        " --shard {wildcards.shard}"
        " --output {output.note:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule tokenize:
    """Tokenizing {wildcards.source}; with shards, joining them."""
    input:
        sources=lambda wildcards: SOURCE_FILES[wildcards.source],
        tokenizer=rules.train_tokenizer.output.manifest,
        shards=shards(f"{D}/tokens/{{source}}"),
    output:
        bin=f"{D}/tokens/{{source}}/tokens.bin",
        idx=f"{D}/tokens/{{source}}/tokens.idx",
        documents=f"{D}/tokens/{{source}}/documents.npy",
        titles=f"{D}/tokens/{{source}}/documents.jsonl",
        skipped=f"{D}/tokens/{{source}}/skipped.jsonl",
        manifest=f"{D}/tokens/{{source}}/manifest.json",
    log:
        f"{D}/logs/tokenize/{{source}}.log",
    benchmark:
        f"{D}/benchmarks/tokenize/{{source}}.jsonl"
    threads: RESOURCES.tokenize_threads
    resources:
        mem_mb=4000,
        runtime="12h",
    params:
        code=code("retro.corpus.tokenize"),
        settings=lambda wildcards: section(
            name=wildcards.source,
            source=READ[wildcards.source],
            **{key: WHOLE[key] for key in ["split", "seed", "on_error"]},
        ),
    shell:
        "python -m retro.corpus.tokenize"
        " --settings {params.settings:q}"
        " --tokenizer {input.tokenizer:q}"
        " --shards {input.shards:q}"
        " --output {output.manifest:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"
