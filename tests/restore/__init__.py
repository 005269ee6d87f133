'''Nothing is left behind, whatever happens: after contexts, faults, interruptions and in threads.'''
