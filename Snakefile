"""RETRO, end to end: from text to a retrieval-enhanced language model, its GPT twin, and what retrieval bought.

snakemake --cores all                                   the default, config/config.yaml
snakemake --cores all --configfile config/tiny.yaml     another config
snakemake preprocess --cores all                        stop at the recorded config (or: train_all)
snakemake experiments --cores all                       more questions to the trained models (config/experiments.yaml)
snakemake qa --configfile config/qa.yaml --cores all     questions answered, by models fine-tuned to (config/qa.yaml)
snakemake validate --cores all                          recompute a sample of what preprocessing stored
snakemake --workflow-profile profiles/slurm             on a cluster
"""

from snakemake.utils import min_version

min_version("9.20")


IMAGE = "envs/retro.sif"


container: IMAGE  # used with --software-deployment-method apptainer only


include: "rules/common.smk"
include: "rules/corpus.smk"
include: "rules/database.smk"
include: "rules/retrieval.smk"
include: "rules/training.smk"
include: "rules/evaluation.smk"
include: "rules/report.smk"
include: "rules/experiments.smk"
include: "rules/qa.smk"
include: "rules/validate.smk"


onstart:
    started.note(Path(D), Path(workflow.basedir))  # for the report's provenance


rule all:
    """Everything: artifacts, models, evaluation and report."""
    default_target: True
    input:
        WORKFLOW.preprocessed(),
        WORKFLOW.retrieved(),
        WORKFLOW.models(),
        WORKFLOW.reports(),


keep_packed("train_tokenizer", "tokenize", "tokenize_shard", "duplicates", "chunk", "assemble", "record")
refuse_unknown_targets()
