'''The command line: what it prints, writes and returns.'''
