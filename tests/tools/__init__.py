'''What is built upon explanations: token models, scores of maps, the conformance kit.'''
