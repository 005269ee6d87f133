'''Rules of ours, each against its formula.'''
