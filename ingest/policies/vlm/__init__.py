"""Vision-language models of transformers, PaliGemma and its peers, with their decoding."""
