"""stopwise inside other people's training code: the callback of ``transformers.Trainer``, its preview and losses."""
