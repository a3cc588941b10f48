"""Where accuracies come from: training, the ImageNet predictor, known tables, training-free scores."""
