"""How `pylm`, the package's own small language model of Python, is made: `make pylm`.

corpus -> tokenizer -> train -> evaluate (against n-grams) -> src/sae_placebo/pylm
"""
