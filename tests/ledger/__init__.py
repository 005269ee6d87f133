'''The ledger closes, and its sinks are named.'''
