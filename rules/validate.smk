"""Validate: a sample of what preprocessing stored, recomputed and compared bit by bit. Not part of `all`.

in     what is stored in {D}: named in params, since nothing of it may be made again first
steps  recompute, one job a stage; validate tells what they found
out    {D}/validate/<stage>.json
"""


rule recompute:
    """Recomputing a sample of what is stored: {wildcards.stage}."""
    output:
        report=f"{D}/{names.VALIDATED}",
    log:
        f"{D}/logs/validate/{{stage}}.log",
    wildcard_constraints:
        stage="|".join(WORKFLOW.validated()),
    threads: lambda wildcards: WORKFLOW.validated()[wildcards.stage]
    resources:
        mem_mb=16000,
        runtime="24h",
        gpu=lambda wildcards: RESOURCES.gpus if wildcards.stage in ["embeddings", "index", "neighbours"] else 0,
    params:
        manifests=lambda wildcards: WORKFLOW.stored(wildcards.stage),
        fraction=CONFIG.validation.fraction,
        seed=CONFIG.validation.seed,
        asked=time.time_ns(),  # whoever asks for a validation gets one
    shell:
        "python -m retro.validate.recompute"
        " --manifests {params.manifests:q}"
        " --fraction {params.fraction:q}"
        " --seed {params.seed:q}"
        " --output {output.report:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule validate:
    """Recomputing a sample of everything that preprocessing stored."""
    input:
        reports=expand(rules.recompute.output.report, stage=WORKFLOW.validated()),
    log:
        f"{D}/logs/validate.log",
    localrule: True
    shell:
        "python -m retro.validate.recompute --reports {input.reports:q} 2> {log:q}"
