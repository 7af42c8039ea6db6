"""Where artifacts lie, below a dataset's folder D. Snakemake's rules take these patterns as they are.

`{retrieval}` is empty for the dataset's own retrieval and `retrievals/<name>/` for one that the config names, so that
both are laid out the same.
"""

TOKENIZER = "tokenizer"
TOKENS = "tokens/{source}"
DUPLICATES = "duplicates"
CHUNKS = "chunks/{source}"
DATABASE = "database"
EMBEDDINGS = "{retrieval}embeddings/{source}"
INDEX = "{retrieval}index"
BM25 = "{retrieval}bm25"
NEIGHBOURS = "{retrieval}neighbours/{split}"
CANDIDATES = "{retrieval}candidates/{split}"
FRACTION = "{retrieval}fractions/{fraction}/{split}"  # named by its condition: retro.experiments.plan.fraction_name
RUN = "runs/{run}"
LOSSES = "runs/{run}/evaluation/{split}/{mode}"
OVERLAP = "overlap/{split}"
EXPERIMENT = "experiments/{experiment}"
ANSWERS = "{answering}.{retrieved}.jsonl"  # in the folder of the config's qa.name
FIGURES = "figures"
PARTS = "parts"  # sections of the report
VALIDATED = "validate/{stage}.json"


def prefix(retrieval: str) -> str:
    """What stands for {retrieval}: nothing for the dataset's own, which is called ''."""
    return f"retrievals/{retrieval}/" if retrieval else ""


def retrieval(prefix: str) -> str:
    """The name of the retrieval with this prefix."""
    return prefix.removeprefix("retrievals/").removesuffix("/")
