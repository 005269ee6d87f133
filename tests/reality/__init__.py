'''What models and their users do: each case is explained right, or refused with what to do.'''
