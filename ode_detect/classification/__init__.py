"""Classification of pictures: a linear layer on the pooled features of any backbone."""
