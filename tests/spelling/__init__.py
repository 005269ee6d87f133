'''Two spellings of one function get one map, or a table says why not.'''
