"""Duplicates: documents that are equal, or nearly, where the config asks for them (dataset.duplicates.action).

in     {D}/tokens/<source>
steps  duplicates, one job over all sources
out    {D}/duplicates
"""


rule duplicates:
    """Finding documents that are equal, or nearly."""
    input:
        tokens=expand(rules.tokenize.output.manifest, source=SOURCES),
        arrays=arrays(
            expand(rules.tokenize.output.bin, source=SOURCES),
            expand(rules.tokenize.output.idx, source=SOURCES),
            expand(rules.tokenize.output.documents, source=SOURCES),
            expand(rules.tokenize.output.titles, source=SOURCES),
        ),
    output:
        clusters=f"{D}/duplicates/clusters.npy",
        listed=f"{D}/duplicates/clusters.jsonl",
        dropped=f"{D}/duplicates/dropped.npy",
        manifest=f"{D}/duplicates/manifest.json",
    log:
        f"{D}/logs/duplicates.log",
    benchmark:
        f"{D}/benchmarks/duplicates.jsonl"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="12h",
    params:
        code=code("retro.corpus.duplicates"),
        settings=section(
            duplicates=DATASET.duplicates.facts(),
            sources={name: {"database": source["database"]} for name, source in WHOLE["sources"].items()},
            seed=DATASET.seed,
        ),
    shell:
        "python -m retro.corpus.duplicates"
        " --settings {params.settings:q}"
        " --tokens {input.tokens:q}"
        " --output {output.manifest:q}"
        " 2>&1 | tee {log:q}"
