"""How good a trained network's features are: kNN, linear classifiers, geometry, fine-tuning.

python engine/evaluate/run.py runs/NAME/last.pt
"""
