"""Question answering: models fine-tuned to answer, their answers, scores. The config's `qa` says which questions.

in     {D}/runs/<run>, the database and index, files of questions and instructions
steps  fine-tune the first RETRO run and its twin; answer, tuned or not, retrieval on and off; score; the section
out    {D}/runs/<run>-<name>, {D}/<name>/<run>.<retrieval>.jsonl, {D}/<name>.csv, {D}/figures/<name>.svg,
       {D}/parts/<name>.html, where <name> is the config's qa.name
"""

TUNED = CONFIG.qa.name


wildcard_constraints:
    answering="|".join(re.escape(name) for run in RUNS for name in WORKFLOW.answering(run)),
    retrieved="|".join([*usual("retro"), *usual("gpt")]),


rule finetune:
    """Fine-tuning {wildcards.run} to answer."""
    input:
        config=RECORDED,
        model=rules.train.output.model,
        weights=arrays(rules.train.output.weights),
        index=arrays(expand(rules.index.output.index, retrieval="")),
        embeddings=lambda wildcards: arrays(WORKFLOW.embeddings("", "embeddings.npy")),
        instructions=lambda wildcards: elsewhere(
            CONFIG.qa.instructions, f"{WORKFLOW.path(names.RUN, run=wildcards.run)}-{TUNED}/model.json"
        ),
    output:
        weights=f"{D}/{names.RUN}-{TUNED}/model.safetensors",
        model=f"{D}/{names.RUN}-{TUNED}/model.json",
    log:
        f"{D}/logs/finetune/{{run}}-{TUNED}.log",
    benchmark:
        f"{D}/benchmarks/finetune/{{run}}-{TUNED}.jsonl"
    threads: lambda wildcards: RUNS[wildcards.run].train.threads
    resources:
        mem_mb=8000,
        runtime="24h",
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.qa.finetune"),
        content=lambda wildcards: content(CONFIG.qa.instructions),
        settings=canonical(CONFIG.qa.finetune_facts()),
        checkpoints=f"{D}/{names.RUN}-{TUNED}/checkpoints",  # undeclared: they survive failures and retries
        # Not what a cluster cuts `threads` down to: it is part of what makes the bytes.
        threads=lambda wildcards: RUNS[wildcards.run].train.threads,
    shell:
        "python -m retro.qa.finetune"
        " --config {input.config:q}"
        " --model {input.model:q}"
        " --settings {params.settings:q}"
        " --checkpoints {params.checkpoints:q}"
        " --output {output.model:q}"
        " --threads {params.threads}"
        " 2>&1 | tee {log:q}"


rule answer:
    """Answering questions: {wildcards.answering}, retrieval {wildcards.retrieved}."""
    input:
        config=RECORDED,
        model=f"{D}/runs/{{answering}}/model.json",
        weights=arrays(f"{D}/runs/{{answering}}/model.safetensors"),
        index=arrays(expand(rules.index.output.index, retrieval="")),
        embeddings=lambda wildcards: arrays(WORKFLOW.embeddings("", "embeddings.npy")),
        questions=lambda wildcards: elsewhere([WORKFLOW.questions()]),
    output:
        answers=f"{D}/{TUNED}/{names.ANSWERS}",
    log:
        f"{D}/logs/answer/{TUNED}/{{answering}}.{{retrieved}}.log",
    benchmark:
        f"{D}/benchmarks/answer/{TUNED}/{{answering}}.{{retrieved}}.jsonl"
    threads: RESOURCES.evaluate_threads
    resources:
        mem_mb=8000,
        gpu=RESOURCES.gpus,
    params:
        code=code("retro.qa.answer"),
        content=lambda wildcards: content([WORKFLOW.questions()]),
        settings=canonical(CONFIG.qa.answer_facts()),
    shell:
        "python -m retro.qa.answer"
        " --config {input.config:q}"
        " --model {input.model:q}"
        " --settings {params.settings:q}"
        " --questions {input.questions:q}"
        " --retrieval {wildcards.retrieved}"
        " --output {output.answers:q}"
        " --threads {threads}"
        " 2>&1 | tee {log:q}"


rule score:
    """Scoring the answers."""
    input:
        answers=lambda wildcards: WORKFLOW.answered(),
    output:
        scores=report(f"{D}/{TUNED}.csv", caption="../docs/captions/qa.rst", category="Questions"),
        differences=report(f"{D}/{TUNED}-differences.csv", caption="../docs/captions/qa.rst", category="Questions"),
    log:
        f"{D}/logs/score/{TUNED}.log",
    benchmark:
        f"{D}/benchmarks/score/{TUNED}.jsonl"
    params:
        code=code("retro.qa.score"),
        bootstrap=CONFIG.qa.bootstrap,
    shell:
        "python -m retro.qa.score"
        " --answers {input.answers:q}"
        " --bootstrap {params.bootstrap}"
        " --scores {output.scores:q}"
        " --differences {output.differences:q}"
        " 2>&1 | tee {log:q}"


if CONFIG.qa.questions:

    rule qa:
        """Answers scored, and drawn for the report; the next `snakemake` puts them in it."""
        input:
            scores=rules.score.output.scores,
            differences=rules.score.output.differences,
            answers=lambda wildcards: WORKFLOW.answered()[:1],
        output:
            svg=report(f"{D}/{names.FIGURES}/{TUNED}.svg", caption="../docs/captions/qa.rst", category="Questions"),
            png=f"{D}/{names.FIGURES}/{TUNED}.png",
            part=f"{D}/{names.PARTS}/{TUNED}.html",
        log:
            f"{D}/logs/{TUNED}.log",
        benchmark:
            f"{D}/benchmarks/{TUNED}.jsonl"
        params:
            code=code("retro.report.qa"),
            folder=lambda wildcards, output: os.path.dirname(output.svg),
        shell:
            "python -m retro.report.qa"
            " --scores {input.scores:q}"
            " --differences {input.differences:q}"
            " --answers {input.answers:q}"
            " --output-folder {params.folder:q}"
            " --part {output.part:q}"
            " 2>&1 | tee {log:q}"

else:  # a section that another config made is a file like any other

    rule qa:
        """Nothing to ask."""
        input:
            lambda wildcards: WORKFLOW.questions(),
