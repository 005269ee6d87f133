'''The commands of the command line, a room for each, and what they share.'''
