"""The frozen vision-language model: prompt, model, scoring, caches."""
