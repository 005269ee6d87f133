'''What is refused: by name, with a remedy, and with the model as it was.'''
