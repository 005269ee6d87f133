'''Named canonizers: whom they recognise, what they add, and how they combine.'''
