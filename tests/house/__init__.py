'''The house itself: its plan, its docs and notebooks, and that every function of torch has its place.'''
