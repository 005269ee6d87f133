'''What tests explain: pasted problems, single lines, random programs, attention families.'''
