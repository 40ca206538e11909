"""ResNet-20: the network and its training, images of digits, and readers of MNIST's and CIFAR's files."""
