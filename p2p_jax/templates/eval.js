document.body.append(head(), figures(), curves(), gallery());
