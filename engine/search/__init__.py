"""The search for a better augmentation: a recipe's probabilities and strengths, by kNN after a short training.

python engine/search/run.py --trials 10
"""
