'''The demo: its data, its trained models, its explanations and its command.'''
