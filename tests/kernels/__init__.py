'''Single steps of the backward pass against autograd and their formulas.'''
