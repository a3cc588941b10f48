"""Graphs for runtimes, written from the operators of layers: ONNX, LiteRT, ncnn, ExecuTorch; quantised."""
