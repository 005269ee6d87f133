'''Layer-wise relevance propagation with Zennit for any attention code.'''
