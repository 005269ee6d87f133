'''Maps are right: equal to an independent replica, to a formula, to stock Zennit, or to each other.'''
