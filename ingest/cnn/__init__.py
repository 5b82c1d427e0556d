"""What convolutional networks have learned and see: filters, feature maps, guided backpropagation.

`base.py` is the seam: a network gives its convolutions, and values and gradients of one of them.
`torch_network.py` is any PyTorch module with `Conv2d`, `octo_network.py` the image encoder of Octo.
"""
