"""Corpus: documents to tokens; which documents are equal, or nearly.

in     the sources of the config
steps  train_tokenizer, then tokenize, one job a source (tokenize_shard: part of it); duplicates, one job over all sources,
       where the config asks for them (dataset.duplicates.action)
out    {D}/tokenizer, {D}/tokens/<source>, {D}/duplicates
"""

LEARNED_FROM, READ = WORKFLOW.learned_from(), WORKFLOW.read()
LEARNED_FILES = [file for name in SOURCES if name in LEARNED_FROM for file in FILES_OF[name]]
GIVEN_FILES = DATASET.tokenizer.given


rule train_tokenizer:
    """Training the tokenizer on the train split, or taking the given one."""
    input:
        sources=lambda wildcards: elsewhere(LEARNED_FILES, WORKFLOW.manifest(names.TOKENIZER)),
        given=lambda wildcards: elsewhere(GIVEN_FILES, WORKFLOW.manifest(names.TOKENIZER)),
    output:
        files=[f"{D}/{names.TOKENIZER}/{name}" for name in TOKENIZER_FILES[DATASET.tokenizer.type]],
        manifest=f"{D}/{names.TOKENIZER}/manifest.json",
    log:
        f"{D}/logs/train_tokenizer.log",
    benchmark:
        f"{D}/benchmarks/train_tokenizer.jsonl"
    threads: RESOURCES.tokenize_threads
    params:
        code=code("retro.corpus.train_tokenizer"),
        content=lambda wildcards: content([*LEARNED_FILES, *GIVEN_FILES]),
        settings=section(sources=LEARNED_FROM, **WORKFLOW.settings("tokenizer", "split", "seed", "on_error")),
    shell:
        "python -m retro.corpus.train_tokenizer"
        " --settings {params.settings:q}"
        " --output {output.manifest:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule tokenize:
    """Tokenizing {wildcards.source}; with shards, joining them."""
    input:
        sources=lambda wildcards: elsewhere(
            FILES_OF[wildcards.source], WORKFLOW.manifest(names.TOKENS, source=wildcards.source)
        ),
        tokenizer=rules.train_tokenizer.output.manifest,
        shards=shards(f"{D}/{names.TOKENS}"),
    output:
        bin=f"{D}/{names.TOKENS}/tokens.bin",
        idx=f"{D}/{names.TOKENS}/tokens.idx",
        documents=f"{D}/{names.TOKENS}/documents.npy",
        titles=f"{D}/{names.TOKENS}/documents.jsonl",
        skipped=f"{D}/{names.TOKENS}/skipped.jsonl",
        manifest=f"{D}/{names.TOKENS}/manifest.json",
    log:
        f"{D}/logs/tokenize/{{source}}.log",
    benchmark:
        f"{D}/benchmarks/tokenize/{{source}}.jsonl"
    threads: RESOURCES.tokenize_threads
    resources:
        runtime="12h",
    params:
        code=code("retro.corpus.tokenize"),
        content=lambda wildcards: content(FILES_OF[wildcards.source]),
        settings=lambda wildcards: section(
            name=wildcards.source,
            source=READ[wildcards.source],
            **WORKFLOW.settings("split", "seed", "on_error"),
        ),
        part=part,
    shell:
        "python -m retro.corpus.tokenize"
        " --settings {params.settings:q}"
        " --tokenizer {input.tokenizer:q}"
        " {params.part:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


use rule tokenize as tokenize_shard with:
    """Tokenizing shard {wildcards.shard} of {wildcards.source}."""
    output:
        # Its own token store lies beside it, undeclared, until it is joined.
        shard=temp(f"{D}/{names.TOKENS}/shards/{{shard}}.json"),
    log:
        f"{D}/logs/tokenize/{{source}}.{{shard}}.log",
    benchmark:
        f"{D}/benchmarks/tokenize/{{source}}.{{shard}}.jsonl"


rule duplicates:
    """Finding documents that are equal, or nearly."""
    input:
        tokens=expand(rules.tokenize.output.manifest, source=SOURCES),
        arrays=arrays(
            *(expand(rules.tokenize.output[name], source=SOURCES) for name in ["bin", "idx", "documents", "titles"])
        ),
    output:
        clusters=f"{D}/{names.DUPLICATES}/clusters.npy",
        listed=f"{D}/{names.DUPLICATES}/clusters.jsonl",
        dropped=f"{D}/{names.DUPLICATES}/dropped.npy",
        manifest=f"{D}/{names.DUPLICATES}/manifest.json",
    log:
        f"{D}/logs/duplicates.log",
    benchmark:
        f"{D}/benchmarks/duplicates.jsonl"
    resources:
        runtime="12h",
    params:
        code=code("retro.corpus.duplicates"),
        settings=section(duplicates=DATASET.duplicates.facts(), sources=WORKFLOW.uses("database"), seed=DATASET.seed),
    shell:
        "python -m retro.corpus.duplicates"
        " --settings {params.settings:q}"
        " --tokens {input.tokens:q}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"
