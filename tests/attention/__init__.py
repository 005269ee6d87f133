'''Reference attention modules against the packages they are named after, and products against their formulas.'''
