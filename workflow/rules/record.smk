# What the repository keeps of a finished run: `snakemake --cores 1 record --configfile FILE`, and of a study of the
# stopping rules on kernels: `snakemake --cores 1 record_study --configfile FILE`.

RECORD = recorded()
KEPT = f"docs/records/{config['name']}"
PAGES = recorded_pages()


rule record:
    input:
        **RECORD,
        pages=[f"{RESULTS}/{page}" for page in PAGES],
        pictures=[f"{RESULTS}/figures/{figure}.png" for figure in figure_ids()],
        captions=[relative(WORKFLOW / f"report/{figure.lower()}.rst") for figure in figure_ids()],
    output:
        tables=expand("{kept}/{table}.parquet", kept=KEPT, table=RECORD),
        pages=expand("{kept}/{page}", kept=KEPT, page=PAGES),
        pictures=expand("{kept}/{figure}.png", kept=KEPT, figure=figure_ids()),
        text=f"{KEPT}/README.md",
    log:
        f"{RESULTS}/logs/record.log",
    benchmark:
        f"{RESULTS}/benchmarks/record.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        code=library("record"),
        name=config["name"],
        tables=list(RECORD),
        times=f"{RESULTS}/benchmarks",
        digest=CONFIG_DIGEST,
        command=command_line(),
    message:
        "Writing the run's small tables, pages and pictures to docs/records"
    script:
        "../scripts/record.py"


rule record_study:
    input:
        cells=expand(
            f"{RESULTS}/stopping_study/pretrained/{{task}}/seed{{seed}}.parquet", task=MERGED, seed=config["seeds"]
        ),
        table=f"{RESULTS}/stopping_study.parquet",
        page=f"{RESULTS}/stopping_study.md",
        picture=f"{RESULTS}/figures/stopping_study.png",
        caption=relative(WORKFLOW / "report/f3.rst"),
    output:
        cells=f"{KEPT}/study/cells.parquet",
        table=f"{KEPT}/study/methods.parquet",
        page=f"{KEPT}/study/methods.md",
        picture=f"{KEPT}/study/F3.png",
        text=f"{KEPT}/study/README.md",
    log:
        f"{RESULTS}/logs/record_study.log",
    benchmark:
        f"{RESULTS}/benchmarks/record_study.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        code=library("record_study"),
        name=config["name"],
        digest=CONFIG_DIGEST,
        command=command_line("stopping_study"),
    message:
        "Writing the study's cells, table and picture to docs/records"
    script:
        "../scripts/record_study.py"
