# Functions of single stages: what their rules read, and the part of the configuration that they depend on.

DECAYS = ["finite_rank", "beta1", "beta2", "exponential"]  # of the synthetic check


def over_seeds(stage):
    """Return the paths of a stage of task arithmetic over its seeds."""
    return [f"{RESULTS}/{stage}/seed{seed}.parquet" for seed in config["arithmetic"]["seeds"]]


def arithmetic_section(*keys):
    """Return the part of the arithmetic section that a rule depends on."""
    return {key: config["arithmetic"][key] for key in ("size", *keys)}


def trained_section():
    """Return the part of the finetune section that says what a vector is in the tangent space."""
    keys = ("objective", "optimizer", "momentum", "step_size", "learning_rate", "weight_decay", "schedule", "warmup")
    return {key: config["finetune"][key] for key in (*keys, "steps", "batch_size") if key in config["finetune"]}


def named_stop():
    """Return the table that names the step at which training ends, else none: a new rule then retrains nothing."""
    stop = config["finetune"]["stop"]
    if stop in (*MEASURED_STOPS, FIXED_STOP):
        return []
    stage = "folded" if stop in FOLDED_STOPS else "stopping"
    return [f"{RESULTS}/{stage}/{{start}}/{{task}}/seed{{seed}}.parquet"]


# What ends training, on which no fold depends.
ENDING = ("stop", "folds", "epochs", "patience", "min_delta", "continue_after_stop")


def folds_asked():
    """Return how many folds the training examples are parted into, and which of them are left out in turn."""
    if config["finetune"]["stop"] == "holdout_refit":
        return QUARTER, [0]
    folds = config["finetune"].get("folds", 8)
    return folds, list(range(folds))


def table_of(figure):
    """Return a figure's table when the configuration draws it; F5 and F10 when `snakemake theory` has drawn them."""
    path = f"{RESULTS}/figures/{figure}.parquet"
    return [path] if figure in figure_ids() or (figure in ("F5", "F10") and Path(path).is_file()) else []


def run_facts():
    """Return what a reader of the results must know about the run, as short texts."""
    settings, starts = config["finetune"], config["starts"]
    batches = "full batches" if settings["batch_size"] is None else f"batches of {settings['batch_size']}"
    source, revision = config["model"]["source"], config["model"]["revision"]
    return {
        "model": source + (f" at {revision}" if revision else ""),
        "tasks": ", ".join(TASKS),
        "training examples": ", ".join(map(str, sorted(config["sizes"]))),
        "seeds": ", ".join(map(str, config["seeds"])),
        "starts": ", ".join(
            start if own == "all" else f"{start} ({', '.join(own)})"
            for start, own in (starts if isinstance(starts, dict) else dict.fromkeys(starts, "all")).items()
        ),
        "trained parameters": str(config["kernel"]["parameters"]),
        "training": (
            f"{settings['optimizer'].replace('_', ' ')}, {settings['objective'].replace('_', ' ')} loss,"
            f" {settings['steps']} steps, {batches}"
        ),
    }


def recorded():
    """Return the artifacts that each recorded table is made of."""
    tables = {
        "trajectory": each("finetune/{start}/{task}/seed{seed}/trajectory.parquet"),
        "summary": [f"{RESULTS}/summary.parquet"],
    }
    for stage in ("evaluation", "stopping", "decay", "guarantee"):
        tables[stage] = each(f"{stage}/{{start}}/{{task}}/seed{{seed}}.parquet")
    if drift_paths():
        tables["drift"] = drift_paths()
    if arithmetic_runs():
        tables["arithmetic"] = [f"{RESULTS}/arithmetic/seed{seed}.parquet" for seed in config["arithmetic"]["seeds"]]
    for stage in JOINT_STAGES if joint_paths() else ():
        tables[stage] = [path for path in joint_paths() if path.split("/")[-2] == stage]
    return tables | {figure: [f"{RESULTS}/figures/{figure}.parquet"] for figure in figure_ids()}


def recorded_pages():
    """Return the pages of a run that its record keeps."""
    advice = ["merge_advice.md", "merge_score.md"] if config["arithmetic"]["predict"] else []
    merged = ["arithmetic_check.md", *advice] if arithmetic_runs() and config["arithmetic"]["predict"] else []
    return ["summary.md", "claims.md", *merged]


def command_line(target=""):
    """Return the command that makes this run: its configuration files and the values given on the command line."""
    files = [relative(path) for path in workflow.overwrite_configfiles]
    given = [f"{key}={value}".replace(" ", "") for key, value in workflow.config_settings.config.items()]
    words = ["snakemake --cores 2", *([target] if target else [])]
    for option, values in (("--configfile", files), ("--config", given)):
        words += [option, *values] if values else []
    return " ".join(words)
