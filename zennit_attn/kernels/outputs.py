'''What an autograd function may return.'''


def owned(output):
    '''An output that may be written to later, which no autograd function may return a view for.'''
    return output.clone() if output._is_view() else output
