"""OpenVLA: a prefix over one image and the prompt, then a step for each generated action token."""
